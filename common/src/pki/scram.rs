//! SCRAM-SHA-256 verifiers in PostgreSQL's format, so that a password never travels in a statement nor reaches a log.
//!
//! `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (RFC 5802, RFC 7677). Passwords are restricted to
//! printable ASCII, for which SASLprep changes nothing.

use std::num::NonZeroU32;

use aws_lc_rs::{hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::digest::sha256;

/// PostgreSQL's default (`scram_iterations`).
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("4096 is not zero");
const MAX_PASSWORD_CHARS: usize = 1024;

/// Why no verifier can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Empty, or longer than any password needs to be.
    #[error("a password has 1 to {MAX_PASSWORD_CHARS} characters")]
    Length,
    /// Something else than printable ASCII.
    #[error("a password is made of printable ASCII characters")]
    Character,
}

/// The verifier of `password` under a new random salt, as PostgreSQL's `PASSWORD '…'` takes it.
///
/// # Errors
/// See [`Error`].
pub fn verifier(password: &str) -> Result<String, Error> {
    verifier_with(password, &super::random_bytes::<16>())
}

fn verifier_with(password: &str, salt: &[u8]) -> Result<String, Error> {
    if password.is_empty() || password.len() > MAX_PASSWORD_CHARS {
        return Err(Error::Length);
    }
    if !password.bytes().all(|c| (b' '..=b'~').contains(&c)) {
        return Err(Error::Character);
    }
    let (stored_key, server_key) = keys(password, salt);
    let (salt, stored_key, server_key) =
        (STANDARD.encode(salt), STANDARD.encode(stored_key), STANDARD.encode(server_key));
    Ok(format!("SCRAM-SHA-256${ITERATIONS}:{salt}${stored_key}:{server_key}"))
}

fn keys(password: &str, salt: &[u8]) -> ([u8; 32], hmac::Tag) {
    let mut salted = Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, password.as_bytes(), salted.as_mut_slice());
    let key = hmac::Key::new(hmac::HMAC_SHA256, salted.as_slice());
    let stored_key = sha256(hmac::sign(&key, b"Client Key").as_ref());
    (stored_key, hmac::sign(&key, b"Server Key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The exchange of RFC 7677, section 3: user `user`, password `pencil`.
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const PROOF: &str = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_SIGNATURE: &str = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    const AUTH_MESSAGE: &str = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
        r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
        c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

    #[test]
    fn the_verifier_accepts_the_exchange_of_rfc_7677() {
        let verifier = verifier_with("pencil", &STANDARD.decode(SALT).unwrap()).unwrap();
        let keys = verifier.strip_prefix(&format!("SCRAM-SHA-256$4096:{SALT}$")).unwrap();
        let (stored_key, server_key) = keys.split_once(':').unwrap();
        let (stored_key, server_key) =
            (STANDARD.decode(stored_key).unwrap(), STANDARD.decode(server_key).unwrap());

        let signed = |key: &[u8]| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), AUTH_MESSAGE.as_bytes()).as_ref().to_vec()
        };
        assert_eq!(STANDARD.encode(signed(&server_key)), SERVER_SIGNATURE);
        // ClientKey = ClientProof XOR HMAC(StoredKey, AuthMessage), and its digest is StoredKey.
        let client_key: Vec<u8> =
            STANDARD.decode(PROOF).unwrap().iter().zip(signed(&stored_key)).map(|(a, b)| a ^ b).collect();
        assert_eq!(sha256(&client_key).as_slice(), stored_key);
    }

    #[test]
    fn a_verifier_never_contains_the_password_and_is_new_each_time() {
        let (first, second) = (verifier("hunter2").unwrap(), verifier("hunter2").unwrap());
        assert_ne!(first, second);
        assert!(!first.contains("hunter2"));
    }

    #[test]
    fn a_password_that_saslprep_could_change_is_refused() {
        assert_eq!(verifier(""), Err(Error::Length));
        assert_eq!(verifier(&"a".repeat(1025)), Err(Error::Length));
        for bad in ["naïve", "a\0b", "a\nb", "\u{a0}"] {
            assert_eq!(verifier(bad), Err(Error::Character));
        }
    }
}

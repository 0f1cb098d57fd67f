//! Secrets at rest: AES-256-GCM under a master key that lives in a file of its own.
//!
//! ```text
//! master key file:  hfk1.<32 bytes, URL-safe base64>
//! stored text:      hfs1.<key id>.<nonce and ciphertext with tag, URL-safe base64>
//! ```
//!
//! The key's id is derived from the key, so a text says which key opens it, and a rotation can keep old keys for
//! reading. Every text is bound to a *context* (what it is the secret of): copied to another row, it does not open.
//! Nonces are random; with 96 bits that is sound for far more texts than a fleet will ever store (2^32 per key).

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::digest;

const KEY_PREFIX: &str = "hfk1.";
const SEALED_PREFIX: &str = "hfs1";
const NONCE_BYTES: usize = 12;
const MAX_SECRET_BYTES: usize = 64 * 1024;

/// A key that encrypts stored secrets.
pub struct MasterKey {
    id: String,
    bytes: [u8; 32],
}

/// The key in use, and older ones that can still be read with.
#[derive(Debug)]
pub struct Keyring {
    current: MasterKey,
    older: Vec<MasterKey>,
}

/// An encrypted secret, safe to store and to log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

/// Why a secret cannot be encrypted or decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// The key file's text is not a master key.
    #[error("a master key file holds one line: `{KEY_PREFIX}` and 43 URL-safe base64 characters")]
    Key,
    /// The secret is too long to be one.
    #[error("a secret of {bytes} bytes is longer than the {MAX_SECRET_BYTES} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The stored text is not of our format.
    #[error("the stored secret is damaged: it is not of the form `{SEALED_PREFIX}.<key id>.<data>`")]
    Format,
    /// The key is not in the ring.
    #[error("the stored secret needs master key {id}, which is not at hand")]
    UnknownKey {
        /// The key's id.
        id: String,
    },
    /// Changed, or moved to another place, since it was written.
    #[error("the stored secret was changed, or belongs elsewhere")]
    Tampered,
    /// Cryptographic library failed.
    #[error("encrypt a secret")]
    Encrypt,
}

// === impl MasterKey ===

impl MasterKey {
    /// A new random key.
    pub fn generate() -> Self {
        Self::new(super::random_bytes())
    }

    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`CipherError::Key`].
    pub fn from_text(text: &str) -> Result<Self, CipherError> {
        let body = text.trim_end().strip_prefix(KEY_PREFIX).ok_or(CipherError::Key)?;
        let decoded = URL_SAFE_NO_PAD.decode(body).map(Zeroizing::new).map_err(|_| CipherError::Key)?;
        let bytes = <[u8; 32]>::try_from(decoded.as_slice()).map_err(|_| CipherError::Key)?;
        Ok(Self::new(bytes))
    }

    /// The text of a key file, which must have mode 0600.
    pub fn to_text(&self) -> Zeroizing<String> {
        let body = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.bytes));
        Zeroizing::new(format!("{KEY_PREFIX}{}\n", body.as_str()))
    }

    /// Names the key without telling anything about it.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn new(bytes: [u8; 32]) -> Self {
        let named = Zeroizing::new([b"holdfast master key id".as_slice(), &bytes].concat());
        Self { id: digest::to_hex(&digest::sha256(&named)[..8]), bytes }
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, CipherError> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.bytes).map_err(|_| CipherError::Encrypt)
    }
}

impl Drop for MasterKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

// === impl Keyring ===

impl Keyring {
    /// A ring that encrypts with `current` and can read what `older` wrote.
    pub fn new(current: MasterKey, older: Vec<MasterKey>) -> Self {
        Self { current, older }
    }

    /// Encrypts `secret` for `context`, such as `cluster/<id>/superuser`.
    ///
    /// # Errors
    /// [`CipherError::TooLong`], [`CipherError::Encrypt`].
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<Sealed, CipherError> {
        if secret.len() > MAX_SECRET_BYTES {
            return Err(CipherError::TooLong { bytes: secret.len() });
        }
        let id = self.current.id();
        let mut data = secret.to_vec();
        let nonce = self
            .current
            .cipher()?
            .seal_in_place_append_tag(bound_to(id, context), &mut data)
            .map_err(|_| CipherError::Encrypt)?;
        let mut stored = nonce.as_ref().to_vec();
        stored.append(&mut data);
        Ok(Sealed(format!("{SEALED_PREFIX}.{id}.{}", URL_SAFE_NO_PAD.encode(stored))))
    }

    /// Decrypts what was sealed for the same `context`.
    ///
    /// # Errors
    /// [`CipherError::Format`], [`CipherError::UnknownKey`], [`CipherError::Tampered`].
    pub fn open(&self, context: &str, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, CipherError> {
        let (id, stored) = sealed.parts().ok_or(CipherError::Format)?;
        let key = std::iter::once(&self.current)
            .chain(&self.older)
            .find(|key| key.id() == id)
            .ok_or_else(|| CipherError::UnknownKey { id: id.to_owned() })?;
        let (nonce, data) = stored.split_at_checked(NONCE_BYTES).ok_or(CipherError::Format)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| CipherError::Format)?;
        let mut data = Zeroizing::new(data.to_vec());
        let length = key
            .cipher()?
            .open_in_place(nonce, bound_to(id, context), &mut data)
            .map_err(|_| CipherError::Tampered)?
            .len();
        data.truncate(length);
        Ok(data)
    }

    /// Whether `sealed` was written with an older key, and should be sealed anew.
    pub fn is_outdated(&self, sealed: &Sealed) -> bool {
        sealed.parts().is_none_or(|(id, _)| id != self.current.id())
    }
}

// === impl Sealed ===

impl Sealed {
    /// The text to store.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> Option<(&str, Vec<u8>)> {
        let mut parts = self.0.splitn(3, '.');
        let (SEALED_PREFIX, id, body) = (parts.next()?, parts.next()?, parts.next()?) else {
            return None;
        };
        Some((id, URL_SAFE_NO_PAD.decode(body).ok()?))
    }
}

/// The zero byte cannot be in a key's id, so no two pairs give the same bytes.
fn bound_to(id: &str, context: &str) -> Aad<Vec<u8>> {
    Aad::from([id.as_bytes(), &[0], context.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_only_in_its_own_context() {
        let ring = Keyring::new(MasterKey::generate(), Vec::new());
        let sealed = ring.seal("cluster/a/superuser", b"hunter2").unwrap();
        assert_eq!(ring.open("cluster/a/superuser", &sealed).unwrap().as_slice(), b"hunter2");
        assert_eq!(ring.open("cluster/b/superuser", &sealed), Err(CipherError::Tampered));
        assert!(!sealed.as_str().contains("hunter2"));
    }

    #[test]
    fn the_same_secret_never_looks_the_same_twice() {
        let ring = Keyring::new(MasterKey::generate(), Vec::new());
        assert_ne!(ring.seal("x", b"hunter2"), ring.seal("x", b"hunter2"));
    }

    #[test]
    fn no_changed_character_opens() {
        let ring = Keyring::new(MasterKey::generate(), Vec::new());
        let sealed = ring.seal("x", b"hunter2").unwrap();
        for at in 0..sealed.as_str().len() {
            let mut changed = sealed.as_str().as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = Sealed(String::from_utf8(changed).unwrap());
            ring.open("x", &changed).expect_err("a changed text must not open");
            ring.open("x", &Sealed(sealed.as_str()[..at].to_owned())).expect_err("nor a shortened one");
        }
    }

    #[test]
    fn an_older_key_still_reads_and_is_reported_as_outdated() {
        let (first, second) = (MasterKey::generate(), MasterKey::generate());
        let first_again = MasterKey::from_text(&first.to_text()).unwrap();
        let sealed = Keyring::new(first, Vec::new()).seal("x", b"hunter2").unwrap();

        let ring = Keyring::new(second, vec![first_again]);
        assert_eq!(ring.open("x", &sealed).unwrap().as_slice(), b"hunter2");
        assert!(ring.is_outdated(&sealed));
        assert!(!ring.is_outdated(&ring.seal("x", b"hunter2").unwrap()));

        let stranger = Keyring::new(MasterKey::generate(), Vec::new());
        assert!(matches!(stranger.open("x", &sealed), Err(CipherError::UnknownKey { .. })));
    }

    #[test]
    fn a_damaged_key_file_is_refused_and_debug_shows_no_key() {
        let key = MasterKey::generate();
        let text = key.to_text();
        for bad in [
            "",
            "hfk1.",
            &text[..text.len() - 2],
            &text.replace("hfk1", "hfk2"),
            &format!("{}AA", text.trim()),
        ] {
            assert_eq!(MasterKey::from_text(bad).err(), Some(CipherError::Key));
        }
        assert!(!format!("{key:?}").contains(&text[5..20]));
    }
}

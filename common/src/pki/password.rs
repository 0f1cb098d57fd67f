//! Passwords that people and programs can paste anywhere: letters and digits only.

use zeroize::Zeroizing;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 32 characters of 62 are 190 bits.
const CHARS: usize = 32;

/// A new random password of 32 letters and digits (190 bits): needs no quoting in a URI, a shell or SQL.
pub fn generate_password() -> Zeroizing<String> {
    let mut password = Zeroizing::new(String::with_capacity(CHARS));
    while password.len() < CHARS {
        let bytes = Zeroizing::new(super::random_bytes::<64>());
        // Only 0..248 = 4 × 62 is used, or the first characters of the alphabet would come more often.
        let fair = bytes.iter().filter(|byte| **byte < 248).map(|byte| ALPHABET[usize::from(byte % 62)]);
        let missing = CHARS - password.len();
        password.extend(fair.take(missing).map(char::from));
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_needs_no_quoting_and_never_repeats() {
        let (first, second) = (generate_password(), generate_password());
        assert_ne!(first, second);
        assert_eq!(first.len(), CHARS);
        assert!(first.bytes().all(|c| c.is_ascii_alphanumeric()));
    }

    #[test]
    fn every_letter_comes_about_as_often() {
        let mut counts = [0_u32; 128];
        for c in (0..2000).flat_map(|_| generate_password().bytes().collect::<Vec<_>>()) {
            counts[usize::from(c)] += 1;
        }
        // 64,000 characters: 1,032 of each expected; eight standard deviations either way.
        for c in ALPHABET {
            assert!(
                (780..1290).contains(&counts[usize::from(*c)]),
                "{} came {} times",
                *c as char,
                counts[usize::from(*c)]
            );
        }
    }
}

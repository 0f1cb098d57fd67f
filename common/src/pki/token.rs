//! Tokens: bearer secrets with an id, so that they can be listed and revoked, and so that only a digest is stored.
//!
//! ```text
//! join:    hf1.<token-id>.<secret>.<SHA-256 of the authority's certificate>
//! access:  hfo1.<token-id>.<secret>
//! ```
//!
//! Id: a UUID, 36 characters. Secret: 256 random bits in 43 URL-safe base64 characters. Pin: 64 lower-case
//! hexadecimal digits. Each part has one length and one spelling, so a token that lost its end is always noticed.
//! Because the secret has 256 random bits, a plain SHA-256 is the right thing to store: there is nothing to guess.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::digest::Fingerprint;
use crate::error::{Classify, Reason};
use crate::id::TokenId;

const JOIN_PREFIX: &str = "hf1";
const ACCESS_PREFIX: &str = "hfo1";
const ID_CHARS: usize = 36;
const SECRET_CHARS: usize = 43;
const PIN_CHARS: usize = 64;

/// Brings one or more nodes into the fleet whose authority has the pinned certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Its public part.
    pub id: TokenId,
    /// Its secret part; sent only to a server that proved to belong to the pinned authority.
    pub secret: TokenSecret,
    /// SHA-256 of the authority's certificate.
    pub pin: Fingerprint,
}

/// Lets an operator's program call the coordinator without a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// Its public part.
    pub id: TokenId,
    /// Its secret part.
    pub secret: TokenSecret,
}

/// The secret part of a token: 256 random bits. Never shown by `Debug`, compared in constant time, wiped when dropped.
#[derive(Clone)]
pub struct TokenSecret([u8; 32]);

/// What is stored of a secret: its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(Fingerprint);

/// Why a text is no token. No variant repeats any part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing at all.
    #[error("there is no token: the text is empty; `holdfast node token create` makes one")]
    Empty,
    /// Another beginning than the expected one.
    #[error("a token of this kind begins with `{expected}.`")]
    Prefix {
        /// The expected beginning.
        expected: &'static str,
    },
    /// A part is missing: the end of the token got lost.
    #[error("the token is cut off: its {part} is missing")]
    Missing {
        /// Which part.
        part: Part,
    },
    /// A part is shorter than it must be: the token was cut while copying.
    #[error("the token is cut off: its {part} has {found} of {expected} characters")]
    TooShort {
        /// Which part.
        part: Part,
        /// Its length.
        found: usize,
        /// The length that it must have.
        expected: usize,
    },
    /// A part is longer than it must be.
    #[error("the token's {part} has {found} characters instead of {expected}")]
    TooLong {
        /// Which part.
        part: Part,
        /// Its length.
        found: usize,
        /// The length that it must have.
        expected: usize,
    },
    /// A character that the part cannot have.
    #[error("the token's {part} has a character that does not belong there")]
    Character {
        /// Which part.
        part: Part,
    },
    /// More parts than a token of this kind has.
    #[error("the token has something after its end")]
    TrailingPart,
}

/// The parts of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The public id.
    Id,
    /// The secret.
    Secret,
    /// The digest of the authority's certificate.
    Pin,
}

// === impl JoinToken ===

impl JoinToken {
    /// A new token for the authority whose certificate has the fingerprint `pin`.
    pub fn generate(pin: Fingerprint) -> Self {
        Self { id: TokenId::generate(), secret: TokenSecret::generate(), pin }
    }

    /// The token as the one string that is shown once. Wiped when dropped.
    pub fn reveal(&self) -> Zeroizing<String> {
        let Self { id, secret, pin } = self;
        Zeroizing::new(format!("{JOIN_PREFIX}.{id}.{}.{pin}", secret.reveal().as_str()))
    }
}

impl FromStr for JoinToken {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = Parts::after_prefix(text, JOIN_PREFIX)?;
        let token = Self { id: parts.id()?, secret: parts.secret()?, pin: parts.pin()? };
        parts.end()?;
        Ok(token)
    }
}

// === impl AccessToken ===

impl AccessToken {
    /// A new token.
    pub fn generate() -> Self {
        Self { id: TokenId::generate(), secret: TokenSecret::generate() }
    }

    /// The token as the one string that is shown once. Wiped when dropped.
    pub fn reveal(&self) -> Zeroizing<String> {
        let Self { id, secret } = self;
        Zeroizing::new(format!("{ACCESS_PREFIX}.{id}.{}", secret.reveal().as_str()))
    }
}

impl FromStr for AccessToken {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = Parts::after_prefix(text, ACCESS_PREFIX)?;
        let token = Self { id: parts.id()?, secret: parts.secret()? };
        parts.end()?;
        Ok(token)
    }
}

// === impl TokenSecret ===

impl TokenSecret {
    /// A new random secret.
    pub fn generate() -> Self {
        Self(super::random_bytes())
    }

    /// Reads the secret part of a token.
    ///
    /// # Errors
    /// [`ParseError`] about [`Part::Secret`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        of_length(Part::Secret, text, SECRET_CHARS)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map(Zeroizing::new)
            .map_err(|_| ParseError::Character { part: Part::Secret })?;
        let mut secret = [0; 32];
        // 43 characters are 258 bits; the decoder refuses spare bits that are not zero.
        secret.copy_from_slice(bytes.get(..32).ok_or(ParseError::Character { part: Part::Secret })?);
        Ok(Self(secret))
    }

    /// The secret as text. Wiped when dropped.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0))
    }

    /// What to store of it.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Fingerprint::of(&self.0))
    }
}

impl PartialEq for TokenSecret {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for TokenSecret {}

impl Drop for TokenSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(redacted)")
    }
}

// === impl SecretHash ===

impl SecretHash {
    /// Whether `secret` is the one that was hashed; takes the same time whatever the answer.
    pub fn matches(&self, secret: &TokenSecret) -> bool {
        constant_time::verify_slices_are_equal(self.0.as_bytes(), secret.hash().0.as_bytes()).is_ok()
    }
}

// === impl ParseError ===

impl Classify for ParseError {
    fn reason(&self) -> Reason {
        Reason::TokenInvalid
    }
}

// === impl Part ===

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Id => "id",
            Self::Secret => "secret",
            Self::Pin => "certificate digest",
        })
    }
}

/// The parts of a token that are still to be read.
struct Parts<'a>(std::str::Split<'a, char>);

impl<'a> Parts<'a> {
    fn after_prefix(text: &'a str, expected: &'static str) -> Result<Self, ParseError> {
        let mut parts = text.split('.');
        if parts.next() != Some(expected) {
            return Err(if text.is_empty() { ParseError::Empty } else { ParseError::Prefix { expected } });
        }
        Ok(Self(parts))
    }

    fn id(&mut self) -> Result<TokenId, ParseError> {
        let text = self.next(Part::Id)?;
        of_length(Part::Id, text, ID_CHARS)?;
        text.parse().map_err(|_| ParseError::Character { part: Part::Id })
    }

    fn secret(&mut self) -> Result<TokenSecret, ParseError> {
        TokenSecret::parse(self.next(Part::Secret)?)
    }

    fn pin(&mut self) -> Result<Fingerprint, ParseError> {
        let text = self.next(Part::Pin)?;
        of_length(Part::Pin, text, PIN_CHARS)?;
        text.parse().map_err(|_| ParseError::Character { part: Part::Pin })
    }

    fn end(mut self) -> Result<(), ParseError> {
        self.0.next().map_or(Ok(()), |_| Err(ParseError::TrailingPart))
    }

    fn next(&mut self, part: Part) -> Result<&'a str, ParseError> {
        self.0.next().filter(|text| !text.is_empty()).ok_or(ParseError::Missing { part })
    }
}

fn of_length(part: Part, text: &str, expected: usize) -> Result<(), ParseError> {
    match text.chars().count() {
        found if found < expected => Err(ParseError::TooShort { part, found, expected }),
        found if found > expected => Err(ParseError::TooLong { part, found, expected }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken::generate(Fingerprint::of(b"an authority"))
    }

    #[test]
    fn a_token_comes_back_as_it_went_in() {
        let join = token();
        assert_eq!(join.reveal().parse(), Ok(join));
        let access = AccessToken::generate();
        assert_eq!(access.reveal().parse(), Ok(access));
    }

    #[test]
    fn every_truncation_is_refused() {
        let (join, access) = (token().reveal(), AccessToken::generate().reveal());
        for end in 0..join.len() {
            assert!(join[..end].parse::<JoinToken>().is_err(), "{end} characters of a join token passed");
        }
        for end in 0..access.len() {
            assert!(
                access[..end].parse::<AccessToken>().is_err(),
                "{end} characters of an access token passed"
            );
        }
    }

    #[test]
    fn an_error_names_the_part_and_what_is_wrong_with_it() {
        let token = token();
        let (id, secret, pin) = (token.id.to_string(), token.secret.reveal(), token.pin.to_string());
        let secret = secret.as_str();
        let parse = |text: String| text.parse::<JoinToken>().unwrap_err();

        assert_eq!(parse(String::new()), ParseError::Empty);
        assert_eq!(parse(format!("hf2.{id}.{secret}.{pin}")), ParseError::Prefix { expected: "hf1" });
        assert_eq!(parse(format!(" hf1.{id}.{secret}.{pin}")), ParseError::Prefix { expected: "hf1" });
        assert_eq!(parse("hf1".to_owned()), ParseError::Missing { part: Part::Id });
        assert_eq!(parse(format!("hf1.{id}")), ParseError::Missing { part: Part::Secret });
        assert_eq!(parse(format!("hf1.{id}.{secret}")), ParseError::Missing { part: Part::Pin });
        assert_eq!(parse(format!("hf1.{id}.{secret}.")), ParseError::Missing { part: Part::Pin });
        assert_eq!(
            parse(format!("hf1.{id}.{secret}.{}", &pin[..63])),
            ParseError::TooShort { part: Part::Pin, found: 63, expected: 64 }
        );
        assert_eq!(
            parse(format!("hf1.{id}.{secret}.{pin}0")),
            ParseError::TooLong { part: Part::Pin, found: 65, expected: 64 }
        );
        assert_eq!(
            parse(format!("hf1.{id}.{secret}.{}", pin.replace(|_| true, "G"))),
            ParseError::Character { part: Part::Pin }
        );
        assert_eq!(
            parse(format!("hf1.{}.{secret}.{pin}", "Z".repeat(36))),
            ParseError::Character { part: Part::Id }
        );
        assert_eq!(
            parse(format!("hf1.{id}.{}.{pin}", "=".repeat(43))),
            ParseError::Character { part: Part::Secret }
        );
        assert_eq!(parse(format!("hf1.{id}.{secret}.{pin}.x")), ParseError::TrailingPart);
        assert_eq!(parse(format!("hf1.{id}.{secret}.{pin}\n")).to_string(), {
            "the token's certificate digest has 65 characters instead of 64"
        });
    }

    #[test]
    fn neither_debug_nor_an_error_shows_the_secret() {
        let token = token();
        let secret = token.secret.reveal();
        let shown = format!("{token:?} {:?} {:?}", token.secret, token.secret.hash());
        assert!(!shown.contains(secret.as_str()), "{shown}");
        let error = format!("hf1.{}.{}", token.id, secret.as_str()).parse::<JoinToken>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret[..8]));
    }

    #[test]
    fn only_the_right_secret_matches_the_stored_hash() {
        let (right, wrong) = (TokenSecret::generate(), TokenSecret::generate());
        let stored = serde_json::to_string(&right.hash()).unwrap();
        let stored: SecretHash = serde_json::from_str(&stored).unwrap();
        assert!(stored.matches(&right));
        assert!(!stored.matches(&wrong));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}", tail in "(hf1|hfo1)(\\.[a-zA-Z0-9_=-]{0,80}){0,5}") {
            for text in [&text, &tail] {
                if let Ok(token) = text.parse::<JoinToken>() {
                    let again = token.reveal();
                    prop_assert_eq!(again.as_str(), text.as_str());
                }
                if let Ok(token) = text.parse::<AccessToken>() {
                    let again = token.reveal();
                    prop_assert_eq!(again.as_str(), text.as_str());
                }
            }
        }

        #[test]
        fn a_changed_character_is_refused_or_makes_another_token(at in 0_usize..149, with in "[ -~é]") {
            let token = token();
            let text = token.reveal();
            let changed: String =
                text.chars().enumerate().map(|(i, c)| if i == at { with.clone() } else { c.to_string() }).collect();
            if let Ok(parsed) = changed.parse::<JoinToken>() {
                prop_assert_eq!(parsed == token, changed == text.as_str());
            }
        }
    }
}

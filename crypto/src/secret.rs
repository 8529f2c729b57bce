//! The network's secrets: who may join at all.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// What a secret must be worth, in bits.
pub const MIN_STRENGTH_BITS: u32 = 128;

/// One network secret, as a 256-bit key. Its text is not kept.
#[derive(Clone)]
pub struct Secret {
    key: Zeroizing<[u8; 32]>,
}

impl Secret {
    /// Takes a secret as it stands on a line of the secret file.
    pub fn from_text(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let bits = strength_bits(text);
        if bits < MIN_STRENGTH_BITS {
            return Err(SecretError::Weak { bits });
        }
        Ok(Self::from_bytes(text.as_bytes()))
    }

    /// The secret of a network that anyone may join.
    pub fn insecure() -> Self {
        Self::from_bytes(b"")
    }

    /// A fresh secret as text: 256 bits of `entropy` in hex.
    pub fn generate(entropy: &[u8; 32]) -> String {
        hex::encode(entropy)
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Secret { key: Zeroizing::new(crate::keyed_hash(&[0; 32], &[b"weft network secret 1", bytes])) }
    }

    pub(crate) fn psk(&self) -> Zeroizing<[u8; 32]> {
        self.derive(b"noise psk")
    }

    /// A key for one purpose, named by `label`.
    pub(crate) fn derive(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(crate::keyed_hash(&self.key, &[label]))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.key.ct_eq(other.key.as_slice()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The secrets that are live now: one, or two while one replaces the other. The first is used first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring(Vec<Secret>);

impl Keyring {
    /// The longest line a secret file may hold, in bytes.
    pub const MAX_LINE: usize = 1024;

    /// Reads the text of a secret file: a secret a line; blank lines and `#` comments are skipped.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let mut secrets: Vec<Secret> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if line.len() > Self::MAX_LINE {
                return Err(SecretError::TooLong);
            }
            let secret = Secret::from_text(line)?;
            if !secrets.contains(&secret) {
                secrets.push(secret);
            }
        }
        match secrets.len() {
            0 => Err(SecretError::Missing),
            1 | 2 => Ok(Keyring(secrets)),
            count => Err(SecretError::TooMany { count }),
        }
    }

    /// The keyring of a network that anyone may join.
    pub fn insecure() -> Self {
        Keyring(vec![Secret::insecure()])
    }

    /// The live secrets, preferred first; never empty.
    pub fn secrets(&self) -> &[Secret] {
        &self.0
    }

    /// Whether sessions made under `secret` may go on.
    pub fn holds(&self, secret: &Secret) -> bool {
        self.0.contains(secret)
    }
}

/// Why a secret file was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// No secret in the file.
    #[error("no secret in it; make one with: weft secret new")]
    Missing,
    /// More than two.
    #[error("{count} secrets in it; at most two can be live at once")]
    TooMany {
        /// How many were found.
        count: usize,
    },
    /// A line is over [`Keyring::MAX_LINE`].
    #[error("a line of it is over {} bytes", Keyring::MAX_LINE)]
    TooLong,
    /// Too easy to guess.
    #[error("the secret is worth about {bits} bits, {MIN_STRENGTH_BITS} are needed; make one with: weft secret new")]
    Weak {
        /// The estimate.
        bits: u32,
    },
}

/// A plain, generous estimate of what it takes to guess `text`: its length times what one character
/// is worth (the least of alphabet size and its own character statistics), where a character that
/// goes on with a run of four counts one bit, and dictionary-like words 13 bits each.
pub fn strength_bits(text: &str) -> u32 {
    let chars: Vec<char> = text.chars().collect();
    if chars.is_empty() {
        return 0;
    }
    let per_char = alphabet_bits(&chars).min(shannon_bits(&chars));
    let predictable = |i: usize| {
        let step = |k: usize| chars[k] as i64 - chars[k - 1] as i64;
        i >= 3 && step(i).abs() <= 1 && step(i) == step(i - 1) && step(i) == step(i - 2)
    };
    let by_char: f64 = (0..chars.len()).map(|i| if predictable(i) { 1.0f64.min(per_char) } else { per_char }).sum();
    word_bits(text).map_or(by_char, |words| words.min(by_char)) as u32
}

fn alphabet_bits(chars: &[char]) -> f64 {
    type Class = (fn(&char) -> bool, f64);
    const CLASSES: [Class; 4] = [
        (|c| c.is_ascii_digit(), 10.0),
        (|c| c.is_ascii_lowercase(), 26.0),
        (|c| c.is_ascii_uppercase(), 26.0),
        (|c| !c.is_ascii_alphanumeric(), 32.0),
    ];
    let hex = chars.iter().all(char::is_ascii_hexdigit);
    let size: f64 = CLASSES.iter().filter(|(class, _)| chars.iter().any(class)).map(|(_, size)| size).sum();
    if hex { size.min(16.0).log2() } else { size.log2() }
}

fn shannon_bits(chars: &[char]) -> f64 {
    let mut sorted = chars.to_vec();
    sorted.sort_unstable();
    let total = chars.len() as f64;
    let runs: Vec<f64> = sorted.chunk_by(|a, b| a == b).map(|run| run.len() as f64 / total).collect();
    // A sample hardly longer than its alphabet understates it (after Miller and Madow): weigh distinct characters up.
    let correction = 1.5 * runs.len() as f64 / total;
    runs.iter().map(|share| -share * share.log2()).sum::<f64>() + correction
}

fn word_bits(text: &str) -> Option<f64> {
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let wordlike = |word: &&str| (3..=12).contains(&word.len()) && word.chars().skip(1).all(|c| c.is_ascii_lowercase());
    (words.len() >= 2 && words.iter().all(wordlike)).then_some(13.0 * words.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_secrets_are_strong_and_common_ones_weak() {
        for seed in 0..50u8 {
            let entropy = crate::keyed_hash(&[seed; 32], &[b"entropy"]);
            assert!(Secret::from_text(&Secret::generate(&entropy)).is_ok());
        }
        for weak in [
            "",
            "hunter2",
            "correct horse battery staple",
            &"a".repeat(500),
            "0123456789abcdef0123456789",
            "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
            &"ab".repeat(60),
        ] {
            assert!(
                matches!(Secret::from_text(weak), Err(SecretError::Weak { .. })),
                "{weak}: {}",
                strength_bits(weak)
            );
        }
    }

    #[test]
    fn keyrings_hold_one_or_two_secrets() {
        let [a, b, c] = [1u8, 2, 3].map(|n| Secret::generate(&crate::keyed_hash(&[n; 32], &[b"x"])));
        assert_eq!(Keyring::parse("# none\n\n"), Err(SecretError::Missing));
        assert_eq!(Keyring::parse(&format!("{a}\n{b}\n{c}")), Err(SecretError::TooMany { count: 3 }));
        let ring = Keyring::parse(&format!("# new, then old\n{a}\r\n {b} \n{a}\n")).unwrap();
        assert_eq!(ring.secrets(), [Secret::from_text(&a).unwrap(), Secret::from_text(&b).unwrap()]);
        assert!(!ring.holds(&Secret::from_text(&c).unwrap()));
    }
}

//! How values are written in records, messages and the store: postcard.

use serde::{Deserialize, Serialize};

/// Encodes a value.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising plain data into a Vec has no way to fail.
    postcard::to_allocvec(value).expect("plain data")
}

/// Decodes a value; `None` if the bytes are not such a value. Fields that a newer version appended are ignored.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    postcard::take_from_bytes(bytes).ok().map(|(value, _)| value)
}

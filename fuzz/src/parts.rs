//! Inputs that are several things in a row.

/// Cuts an input into parts: each begins with its length in two bytes (LE); the last one may be shorter than it says.
pub fn parts(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = input;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (part, after) = after.split_at(after.len().min(usize::from(u16::from_le_bytes(*length))));
        rest = after;
        Some(part)
    })
}

/// Puts parts in a row, as [`parts`] reads them. Each is cut at 65,535 bytes.
pub fn joined<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut input = Vec::new();
    for part in parts {
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        input.extend_from_slice(&length.to_le_bytes());
        input.extend_from_slice(&part[..usize::from(length)]);
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_were_joined() {
        let whole: [&[u8]; 3] = [b"one", b"", b"three"];
        assert_eq!(parts(&joined(whole)).collect::<Vec<_>>(), whole);
        assert_eq!(parts(&[9, 0, 1, 2]).collect::<Vec<_>>(), [&[1, 2][..]]);
        assert_eq!(parts(&[9]).count(), 0);
    }
}

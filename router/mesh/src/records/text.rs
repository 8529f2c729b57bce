//! Names as records hold them.

/// The longest name of a host, segment or endpoint, in bytes (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 63;
/// The longest domain name, in bytes of text (RFC 1035, section 2.3.4).
pub const MAX_DOMAIN_NAME: usize = 253;

/// Returns whether `text` may be the name of a host, a segment or an endpoint.
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(allowed) && text.starts_with(|c: char| c != '.')
}

/// Returns whether `text` is labels of 1 to 63 letters, digits, '-' or '_', with dots between them (RFC 1035, section
/// 2.3.1, as engines take it).
pub fn is_domain_name(text: &str) -> bool {
    text.len() <= MAX_DOMAIN_NAME && text.split('.').all(is_name)
}

/// Returns whether `text` may be the name of an endpoint.
pub fn is_endpoint_name(text: &str) -> bool {
    is_name(text) || is_domain_name(text)
}

/// Returns the bytes of all names together.
pub(super) fn bytes_of(names: &[String]) -> usize {
    names.iter().map(String::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_containers_and_domains_have() {
        for (name, is_one) in [
            ("web", true),
            ("web.shop.example", true),
            ("a_b-c.1", true),
            (&"x".repeat(64), false),
            (&format!("{0}.{0}.{0}", "x".repeat(63)), true),
            (&vec!["x".repeat(63); 5].join("."), false),
            (".web", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(is_endpoint_name(name), is_one, "{name}");
        }
    }
}

//! Bytes in JSON: as text, or in base64 if they are not UTF-8.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// Sets `name` to the bytes as text, or `name_base64` if they are not UTF-8.
pub(crate) fn set_text_or_base64(object: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = json!(text),
        Err(_) => object[format!("{name}_base64")] = json!(BASE64.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_or_base64() {
        let mut object = json!({});
        set_text_or_base64(&mut object, "body", "\u{e9}".as_bytes());
        set_text_or_base64(&mut object, "stdout", &[0xFF, 0xFE, 0xFD, b'f']);
        assert_eq!(object, json!({ "body": "\u{e9}", "stdout_base64": "//79Zg==" }));
    }
}

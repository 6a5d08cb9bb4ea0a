//! Makes an upstream's text safe to show: one short line, without anything that clients must not see.

use super::mask;

/// The longest message that is shown, in characters.
const CHARS_MAX: usize = 500;

/// Reduces `text` to one line of at most 500 characters, without keys, links, addresses, host names, paths
/// and invisible characters.
pub(in crate::backend) fn clean(text: &str, api_key: &str) -> String {
    // Far more than is shown, but bounded, so that a huge text takes little work.
    let visible = text.chars().take(CHARS_MAX * 8);
    let text: String = visible.filter(|&c| !mask::is_invisible(c)).collect();
    let text = match api_key {
        "" => text,
        key => text.replace(key, "[key]"),
    };
    let words: Vec<String> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .map(mask::mask)
        .collect();
    let line = words.join(" ");
    if line.chars().count() <= CHARS_MAX {
        return line;
    }
    let mut cut: String = line.chars().take(CHARS_MAX - 1).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_line_without_links_addresses_and_keys() {
        let said = "Incorrect API key: sk-abc***xyz.\r\n\tSee https://platform.example/keys, \
                    or [docs](http://x/y)\0; dial 10.0.0.7:8080: refused, [::1]:80";
        assert_eq!(
            clean(said, ""),
            "Incorrect API key: [key]. See [link], or [docs]([link]) ; dial [address]: refused, [address]"
        );
        assert_eq!(clean("not:my-secret!", "my-secret"), "not:[key]!");
        assert_eq!(
            clean(" It is version 2.5, really. ", ""),
            "It is version 2.5, really."
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = clean(&"é".repeat(10_000), "");
        assert_eq!(cut.chars().count(), CHARS_MAX);
        assert!(cut.ends_with('…'));
    }

    #[test]
    fn private_details_are_masked() {
        for (said, shown) in [
            (
                "connect to 10.1.2.3:8080 failed",
                "connect to [address] failed",
            ),
            ("tcp/192.168.0.1, try later", "[address], try later"),
            ("host=10.1.2.3 (port=5432)", "host=[address] (port=5432)"),
            (
                "peer [fe80::1%eth0]:80, fd00::2.",
                "peer [address], [address].",
            ),
            ("dial([::1]:80)", "dial([[address]])"),
            ("db1.internal.corp:5432 is away", "[host] is away"),
            ("no route to redis-master:6379", "no route to [host]"),
            ("postgres:5432 refused", "[host] refused"),
            ("from worker.svc.cluster.local, again", "from [host], again"),
            ("write to ops@example.com", "write to [address]"),
            ("see api.example.com/v1/docs?x=1", "see [link]=1"),
            (
                "File \"/srv/app/main.py\", line 7",
                "File \"[path]\", line 7",
            ),
            ("in src/app/main.py:17", "in [path]"),
            ("open ~/models/flux: denied", "open [path]: denied"),
            ("C:\\Users\\op\\model.ckpt is gone", "[path] is gone"),
            ("at:/etc/easel", "[path]"),
            ("token c2stcHJvai0xMjM0NTY3ODkwYWJj==", "token [key]=="),
            ("key=AKIAIOSFODNN7EXAMPLE1", "key=[key]"),
            ("hash 9f86d081884c7d659a2feaa0c55ad015", "hash [key]"),
            ("id 550e8400-e29b-41d4-a716-446655440000", "id [key]"),
            (
                "Bearer AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
                "Bearer [key]",
            ),
            ("sk_live_abc or SK-proj", "[key] or [key]"),
            (
                "safe\u{202e}txt.exe\u{2066} here\u{feff}",
                "safetxt.exe here",
            ),
            ("10.1.\u{200b}2.3", "[address]"),
            ("密钥AKIAIOSFODNN7EXAMPLE1无效", "密钥[key]无效"),
        ] {
            assert_eq!(clean(said, ""), shown, "{said}");
        }
    }

    #[test]
    fn ordinary_messages_stay() {
        for said in [
            "Your request was rejected by the safety system.",
            "Your request was rejected by the safety system. If you believe this is an error, contact us and \
             include the request ID; safety_violations=[sexual].",
            "The model `gpt-image-2-2026-04-21` does not exist",
            "no model black-forest-labs/flux-1.1-pro, nor stable-diffusion-xl-base-1.0",
            "size must be one of 1024x1024, 1536x1024 or 16:9, e.g. \"1:1\"; width:1024 is not",
            "[json.exception.type_error.302] type must be string, but is null",
            "node 3 (KSampler): torch.OutOfMemoryError: Allocation on device",
            "InvalidParameterValueException: quality and/or n/a, 50%/50%, $0.20/image",
            "image/png and application/json; Billing_hard_limit_reached_for_the_month",
            "Rate limit reached: limit 5/min, try again at 2026-11-24T15:04:13.123Z (in 20s)",
            "status:404, 12:30:45, std::cout, v1.2.3, #42, ratio 2.5:1, at position:12345",
            "请求被安全系统拒绝。",
        ] {
            assert_eq!(clean(said, ""), said);
        }
    }

    /// Secrets of every kind that must not be shown.
    fn secret() -> impl Strategy<Value = String> {
        let port = 1024_u16..;
        let address =
            any::<[u8; 4]>().prop_map(|parts| std::net::Ipv4Addr::from(parts).to_string());
        let address_6 =
            any::<[u16; 8]>().prop_map(|parts| std::net::Ipv6Addr::from(parts).to_string());
        let host = "[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?(\\.[a-z][a-z0-9]{0,6}){0,2}\\.(internal|corp|local|lan|com|io)";
        prop_oneof![
            address.clone(),
            (address, port.clone()).prop_map(|(address, port)| format!("{address}:{port}")),
            address_6.clone(),
            (address_6, port.clone()).prop_map(|(address, port)| format!("[{address}]:{port}")),
            host,
            (host, 1_u16..).prop_map(|(host, port)| format!("{host}:{port}")),
            ("[a-z]{1,6}[0-9-][a-z0-9]{1,6}", port)
                .prop_map(|(host, port)| format!("{host}:{port}")),
            "(/[a-z][a-z0-9_.-]{0,7}){2,5}",
            "[A-Z]:(\\\\[A-Za-z][A-Za-z0-9]{0,7}){1,4}",
            "(https?|s3|file|postgres)://[a-z0-9.-]{1,12}(/[a-z0-9]{0,6}){0,3}",
            "sk-[A-Za-z0-9]{4,40}",
            "[A-Za-z0-9]{19}[0-9][A-Za-z0-9]{0,40}",
            "[0-9a-f]{24,64}",
            proptest::collection::vec(any::<u8>(), 18..60)
                .prop_map(|bytes| base64_simd::STANDARD_NO_PAD.encode_to_string(bytes))
                .prop_filter("without a digit it may be a word", |key| {
                    key.bytes().any(|byte| byte.is_ascii_digit()) && !key.contains(['/', '+'])
                }),
        ]
    }

    proptest! {
        #[test]
        fn no_secret_survives_in_any_position(
            before in "[a-z ]{0,12}",
            open in "[ (\"'`<=,;|{]|: |url=| \u{202e}|请",
            secret in secret(),
            close in "[ )\"'`>,;|}!?]|\\. |: |\u{200b} |。",
            hidden in 0_usize..40,
        ) {
            // An invisible character hides nothing from the mask.
            let at = hidden % secret.len().max(1);
            let split = format!("{}\u{200d}{}", &secret[..at], &secret[at..]);
            for word in [&secret, &split] {
                let shown = clean(&format!("{before}{open}{word}{close} end"), "");
                prop_assert!(!shown.contains(&secret), "{word:?}: {shown:?}");
                prop_assert!(!shown.chars().any(|c| c.is_control() || mask::is_invisible(c)));
            }
        }

        #[test]
        fn every_text_becomes_one_short_visible_line(text in ".{0,600}", key in "[a-z0-9]{0,8}") {
            let shown = clean(&text, &key);
            prop_assert!(shown.chars().count() <= CHARS_MAX);
            prop_assert!(!shown.chars().any(|c| c.is_control() || mask::is_invisible(c)));
        }
    }
}

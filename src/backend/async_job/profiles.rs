//! The built-in descriptions.

const PROFILES: [(&str, &str); 9] = [
    ("apimart", include_str!("profiles/apimart.toml")),
    ("bfl", include_str!("profiles/bfl.toml")),
    ("dashscope", include_str!("profiles/dashscope.toml")),
    (
        "dashscope-wan25",
        include_str!("profiles/dashscope-wan25.toml"),
    ),
    ("easel", include_str!("profiles/easel.toml")),
    ("fal", include_str!("profiles/fal.toml")),
    ("icodeeasy", include_str!("profiles/icodeeasy.toml")),
    ("replicate", include_str!("profiles/replicate.toml")),
    ("sdcpp", include_str!("profiles/sdcpp.toml")),
];

/// The description of this name.
pub(super) fn get(name: &str) -> Option<&'static str> {
    let found = PROFILES.iter().find(|(known, _)| *known == name);
    found.map(|(_, text)| *text)
}

/// The names of all profiles.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::{super::protocol::Protocol, PROFILES};

    #[test]
    fn every_profile_is_a_valid_description() {
        for (name, text) in PROFILES {
            if let Err(fault) = Protocol::parse(text) {
                panic!("{name}: {fault}");
            }
            assert!(text.starts_with("# "), "{name} does not say what it is for");
        }
    }

    #[test]
    fn the_documented_description_is_valid() {
        let page = include_str!("../../../docs/backends.md");
        let (_, from) = page.split_once("```toml\n").unwrap();
        let (example, _) = from.split_once("```").unwrap();
        Protocol::parse(example).unwrap();
    }
}

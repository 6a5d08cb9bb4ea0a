//! Words in a prompt that an upstream would read as its own controls, which clients must not reach.

/// Text that must not be in a prompt, and its replacement.
pub(in crate::backend) type Replaced = (&'static str, &'static str);

/// The name of the tag in which sd-server looks for settings.
pub(in crate::backend) const SD_SERVER: Replaced = ("sd_cpp_extra_args", "sd cpp extra args");
/// `LocalAI` reads the text after it as the negative prompt.
pub(in crate::backend) const LOCALAI: Replaced = ("|", "/");

/// Applies the replacements. None of them creates text that another one replaces.
pub(in crate::backend) fn without(prompt: &str, replaced: &[Replaced]) -> String {
    replaced
        .iter()
        .fold(prompt.to_owned(), |text, (word, by)| text.replace(word, by))
}

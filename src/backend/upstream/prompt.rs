//! Words that an upstream would not take for a prompt but for its controls, which are not the client's.

/// What must not be in a prompt, and what stands in its place.
pub(in crate::backend) type Replaced = (&'static str, &'static str);

/// The name of the tags in which sd-server looks for settings.
pub(in crate::backend) const SD_SERVER: Replaced = ("sd_cpp_extra_args", "sd cpp extra args");
/// `LocalAI` takes what is behind it for what the image must not show.
pub(in crate::backend) const LOCALAI: Replaced = ("|", "/");

/// None of the replacements brings up what it replaces.
pub(in crate::backend) fn without(prompt: &str, replaced: &[Replaced]) -> String {
    replaced
        .iter()
        .fold(prompt.to_owned(), |text, (word, by)| text.replace(word, by))
}

//! Directories that only their owner can enter, and files that only their owner can read.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// What a directory may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody but the owner gets in.
    Owner,
    /// Others pass through it to what they know the name of and own, and see nothing else.
    Passage,
}

const FILE_MODE: u32 = 0o600;

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::Passage => 0o711,
        }
    }
}

/// Makes what is missing of a directory and takes away what an existing one allows beyond `access`.
pub fn make_dir(path: &Path, access: Access) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(access.mode())
        .create(path)?;
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    let allowed = mode & (0o7000 | access.mode());
    if mode == allowed {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(allowed)) {
        Ok(()) => tracing::warn!(
            "{} was open to other users (mode {mode:o}): it now has mode {allowed:o}",
            path.display()
        ),
        // A mounted volume may be another user's; that it is open is for its owner to decide.
        Err(error) => tracing::warn!(
            %error,
            "{} is open to other users (mode {mode:o}), and that could not be changed",
            path.display()
        ),
    }
    Ok(())
}

/// The same for the directory that everything is kept in. The PostgreSQL of a gateway that is root is another
/// user's: it passes through to its own directory.
pub fn make_data_dir(path: &Path) -> io::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    make_dir(
        path,
        if is_root {
            Access::Passage
        } else {
            Access::Owner
        },
    )
}

/// For opening files: those it makes are their owner's alone.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE_MODE);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_private_and_what_was_open_is_tightened() {
        let dir = tempfile::tempdir().unwrap();
        let (made, open) = (dir.path().join("a/b"), dir.path().join("open"));
        make_dir(&made, Access::Owner).unwrap();
        assert_eq!((mode(&made), mode(&dir.path().join("a"))), (0o700, 0o700));
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        make_dir(&open, Access::Passage).unwrap();
        assert_eq!(mode(&open), 0o711);
        make_dir(&open, Access::Owner).unwrap();
        assert_eq!(mode(&open), 0o700);
        // What is tighter stays so.
        make_dir(&open, Access::Passage).unwrap();
        assert_eq!(mode(&open), 0o700);
        let file = open.join("file");
        options().create(true).write(true).open(&file).unwrap();
        assert_eq!(mode(&file), 0o600);
    }
}

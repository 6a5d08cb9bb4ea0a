//! Directories that only their owner can enter, and files that only their owner can read.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// What a directory permits to users other than its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Owner,
    /// Passing through to files that they own and whose names they know. They cannot list the directory.
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

/// Creates missing parts of a directory, and removes permissions beyond `access` from an existing one.
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
        // A mounted volume may belong to another user, whose decision it is to keep it open.
        Err(error) => tracing::warn!(
            %error,
            "{} is open to other users (mode {mode:o}), and that could not be changed",
            path.display()
        ),
    }
    Ok(())
}

/// Does the same for the data directory. If the gateway runs as root, its PostgreSQL runs as another user, which must
/// pass through to its own directory.
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

/// Options for opening files. Files created with them are readable by their owner only.
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
        // Tighter permissions stay unchanged.
        make_dir(&open, Access::Passage).unwrap();
        assert_eq!(mode(&open), 0o700);
        let file = open.join("file");
        options().create(true).write(true).open(&file).unwrap();
        assert_eq!(mode(&file), 0o600);
    }
}

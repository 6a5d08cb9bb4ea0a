//! Finds the PostgreSQL programs installed on this machine.

use std::{
    cmp::Reverse,
    path::{Path, PathBuf},
    process::Command,
};

use super::error::PrivatePostgresError;

/// The oldest major version that supports Easel's migrations.
const MAJOR_MIN: u32 = 13;

/// Directories where distributions, Homebrew and Postgres.app keep one folder per version.
const ROOTS: [&str; 9] = [
    "/usr/lib/postgresql",
    "/usr/lib",
    "/usr/libexec",
    "/usr",
    "/usr/local",
    "/usr/local/lib/postgresql",
    "/opt/homebrew/opt",
    "/usr/local/opt",
    "/Applications/Postgres.app/Contents/Versions",
];

/// The programs of one installation.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The first installation that fits the cluster: a new cluster accepts any supported version, an existing one only
    /// the major version that created it.
    pub(super) fn find(cluster: &Path) -> Result<Self, PrivatePostgresError> {
        Self::find_in(&search_path(), cluster)
    }

    /// The path of `initdb`, which creates a cluster.
    pub(super) fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }

    /// The path of `postgres`, the server.
    pub(super) fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    fn find_in(dirs: &[PathBuf], cluster: &Path) -> Result<Self, PrivatePostgresError> {
        let made_by = std::fs::read_to_string(cluster.join("PG_VERSION")).ok();
        let made_by = made_by.as_deref().map(str::trim);
        let mut found = Vec::new();
        for dir in dirs {
            // Some systems install only one of the two programs in a folder.
            if !(dir.join("initdb").is_file() && dir.join("postgres").is_file()) {
                continue;
            }
            let Some(major) = major_of(&dir.join("postgres")) else {
                continue;
            };
            let fits = match made_by {
                Some(made_by) => major.to_string() == made_by,
                None => major >= MAJOR_MIN,
            };
            if fits {
                return Ok(Self { dir: dir.clone() });
            }
            if !found.contains(&major) {
                found.push(major);
            }
        }
        match made_by {
            Some(made_by) if !found.is_empty() => Err(PrivatePostgresError::OtherMajor {
                cluster: cluster.to_path_buf(),
                made_by: made_by.to_owned(),
                found: found
                    .iter()
                    .map(u32::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
            _ => Err(PrivatePostgresError::NoBinaries { min: MAJOR_MIN }),
        }
    }
}

/// `PG_BIN`, then `PATH`, then the system folders, newest version first.
fn search_path() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::env::var_os("PG_BIN")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    if let Some(path) = std::env::var_os("PATH") {
        dirs.extend(std::env::split_paths(&path));
    }
    let mut installed: Vec<(u32, PathBuf)> = ROOTS.iter().flat_map(|root| versions(root)).collect();
    installed.sort_by_key(|(major, _)| Reverse(*major));
    dirs.extend(
        installed
            .into_iter()
            .flat_map(|(_, dir)| [dir.join("bin"), dir]),
    );
    dirs
}

/// The folders in `root` whose name has a version: `17`, `postgresql16`, `pgsql-15`.
fn versions(root: &str) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            let version = ["postgresql", "postgres", "pgsql"]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix))
                .unwrap_or(name)
                .trim_start_matches(['-', '@']);
            // Homebrew's newest version has no number, nor does the single folder of other systems.
            let major = if version.is_empty() {
                u32::MAX
            } else {
                leading_number(version)?
            };
            Some((major, entry.path()))
        })
        .collect()
}

fn major_of(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // `postgres (PostgreSQL) 17.2 (Debian 17.2-1)`
    leading_number(text.split_whitespace().nth(2)?)
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder with programs that report this version.
    fn install(root: &Path, version: &str) -> PathBuf {
        let dir = root.join(version);
        std::fs::create_dir(&dir).unwrap();
        for program in ["initdb", "postgres"] {
            let path = dir.join(program);
            let script = format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n");
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        dir
    }

    #[test]
    fn nothing_installed_names_the_ways_out() {
        let root = tempfile::tempdir().unwrap();
        let lone = root.path().join("lone");
        std::fs::create_dir(&lone).unwrap();
        std::fs::write(lone.join("initdb"), "").unwrap();
        let error = Binaries::find_in(&[lone], root.path())
            .unwrap_err()
            .to_string();
        for needed in [
            "apt install postgresql",
            "dnf install postgresql-server",
            "apk add postgresql",
            "pacman -S postgresql",
            "brew install postgresql",
            "DATABASE_URL",
        ] {
            assert!(error.contains(needed), "{needed} is missing in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn a_cluster_takes_only_the_version_that_made_it() {
        let root = tempfile::tempdir().unwrap();
        let dirs = [
            install(root.path(), "17beta1"),
            install(root.path(), "14.3"),
        ];
        let cluster = root.path();

        assert_eq!(Binaries::find_in(&dirs, cluster).unwrap().dir, dirs[0]);
        std::fs::write(cluster.join("PG_VERSION"), "14\n").unwrap();
        assert_eq!(Binaries::find_in(&dirs, cluster).unwrap().dir, dirs[1]);
        std::fs::write(cluster.join("PG_VERSION"), "16\n").unwrap();
        let error = Binaries::find_in(&dirs, cluster).unwrap_err().to_string();
        assert!(error.contains("made by PostgreSQL 16"), "{error}");
        assert!(error.contains("found: 17, 14"), "{error}");
    }

    #[test]
    fn too_old_or_broken_programs_are_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let old = install(root.path(), "9.6.24");
        let broken = install(root.path(), "broken");
        std::fs::write(broken.join("postgres"), "not a program").unwrap();
        let new = install(root.path(), "15.1");
        let dirs = [old.clone(), broken, new.clone()];
        assert_eq!(Binaries::find_in(&dirs, root.path()).unwrap().dir, new);
        assert!(Binaries::find_in(&[old], root.path()).is_err());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "9.6",
            "15",
            "postgresql@17",
            "pgsql-16",
            "postgresql",
            "share",
        ] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let mut majors: Vec<u32> = versions(root.path().to_str().unwrap())
            .into_iter()
            .map(|(major, _)| major)
            .collect();
        majors.sort_unstable();
        assert_eq!(majors, [9, 15, 16, 17, u32::MAX]);
    }
}

//! Which user the server runs as: PostgreSQL refuses to run as root.

use std::{
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use super::{error::PrivatePostgresError, layout::Layout};

/// How the server's processes drop root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunAs {
    /// The gateway is not root.
    Myself,
    /// They become this user, who owns the cluster.
    Other(User),
    /// They appear as this user inside a user namespace and stay root outside of it, for a cluster below a directory
    /// that only root can enter.
    Mapped(User),
}

/// A user of the system and its main group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// The user's id.
    pub(super) uid: u32,
    /// The group's id.
    pub(super) gid: u32,
}

impl RunAs {
    /// Keeps the owner of an existing cluster. A new cluster gets the chosen user.
    pub(super) fn choose(layout: &Layout) -> Result<Self, PrivatePostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Myself);
        }
        let cluster = &layout.cluster;
        let user = service_user().ok_or(PrivatePostgresError::NoUser)?;
        let found = std::fs::metadata(cluster).map_err(PrivatePostgresError::data_dir(cluster))?;
        if cluster.join("PG_VERSION").exists() {
            return Ok(if found.uid() == 0 {
                Self::Mapped(user)
            } else {
                Self::Other(User {
                    uid: found.uid(),
                    gid: found.gid(),
                })
            });
        }
        let reachable = cluster.ancestors().skip(1).all(|dir| can_enter(user, dir));
        if !reachable && cfg!(target_os = "linux") {
            // Created in part by an earlier start that could reach it: the map covers only root's files.
            chown(cluster, Some(0), Some(0)).map_err(PrivatePostgresError::data_dir(cluster))?;
            return Ok(Self::Mapped(user));
        }
        if !reachable {
            return Err(PrivatePostgresError::OutOfReach {
                cluster: cluster.clone(),
                uid: user.uid,
                source: None,
            });
        }
        chown(cluster, Some(user.uid), Some(user.gid))
            .map_err(PrivatePostgresError::data_dir(cluster))?;
        Ok(Self::Other(user))
    }

    /// Explains why an existing program could not be started.
    pub(super) fn cannot_run(
        self,
        program: PathBuf,
        layout: &Layout,
        source: io::Error,
    ) -> PrivatePostgresError {
        match self {
            Self::Mapped(user) => PrivatePostgresError::OutOfReach {
                cluster: layout.cluster.clone(),
                uid: user.uid,
                source: Some(source),
            },
            Self::Myself | Self::Other(_) => PrivatePostgresError::Run { program, source },
        }
    }
}

fn can_enter(user: User, dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|dir| {
        let mode = dir.permissions().mode();
        mode & 0o001 != 0 || (dir.uid() == user.uid && mode & 0o100 != 0)
    })
}

fn service_user() -> Option<User> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| find_user(&passwd, name))
}

fn find_user(passwd: &str, name: &str) -> Option<User> {
    // macOS writes the ids of `nobody` as -2.
    let id = |text: &str| {
        let id: i64 = text.parse().ok()?;
        u32::try_from(id)
            .or_else(|_| i32::try_from(id).map(i32::cast_unsigned))
            .ok()
    };
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        Some(User { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres2:x:7:8::/:\npostgres:x:101:104:PostgreSQL:/:\n\
                      broken\nnobody:*:-2:-2:Unprivileged:/var/empty:/usr/bin/false\n";
        let user = |uid, gid| Some(User { uid, gid });
        assert_eq!(find_user(passwd, "postgres"), user(101, 104));
        assert_eq!(
            find_user(passwd, "nobody"),
            user(4_294_967_294, 4_294_967_294)
        );
        assert_eq!(find_user(passwd, "postgre"), None);
        assert_eq!(find_user(passwd, "broken"), None);
    }
}

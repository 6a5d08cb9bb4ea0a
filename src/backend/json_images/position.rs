//! The scanner's position in an answer, relative to the paths of images.

use std::sync::Arc;

use super::path::{Holds, ImagePath};
use crate::backend::json_path::Step;

/// A set of paths, by their indexes.
type PathSet = u32;

/// Which paths lead through the value that comes next.
#[derive(Debug)]
pub(super) struct Position {
    paths: Arc<[ImagePath]>,
    /// The open arrays and objects that lead to a path, outermost first.
    open: Vec<Open>,
    /// The number of open arrays and objects inside those, off all paths.
    deeper: usize,
    /// The paths that lead through the next value; `None` until its name is known.
    next: Option<PathSet>,
}

#[derive(Debug)]
struct Open {
    is_object: bool,
    /// The paths that lead inside.
    paths: PathSet,
}

impl Position {
    /// At most the first 32 paths count.
    pub(super) fn new(paths: Arc<[ImagePath]>) -> Self {
        Self {
            paths,
            open: Vec::new(),
            deeper: 0,
            next: Some(PathSet::MAX),
        }
    }

    /// The kind of the next string, if it is at a path.
    pub(super) fn holds(&self) -> Option<Holds> {
        self.here().map(|path| path.holds).next()
    }

    /// Whether the next string names a field that may matter.
    pub(super) fn at_name(&self) -> bool {
        self.deeper == 0 && self.next.is_none()
    }

    /// Enters the value of the field with this name.
    pub(super) fn name(&mut self, name: &[u8]) {
        let Some(open) = self.open.last() else {
            return;
        };
        let depth = self.open.len() - 1;
        let named = |path: &ImagePath| match path.step(depth) {
            Some(Step::Named(field)) => field.as_bytes() == name,
            _ => false,
        };
        self.next = Some(self.filter(open.paths, named));
    }

    /// Moves to the next item or field.
    pub(super) fn comma(&mut self) {
        if self.deeper > 0 {
            return;
        }
        self.next = match self.open.last() {
            Some(open) if open.is_object => None,
            Some(open) => Some(open.paths),
            None => Some(0),
        };
    }

    /// Enters an array or object, given its opening bracket.
    pub(super) fn open(&mut self, bracket: u8) {
        let is_object = bracket == b'{';
        let depth = self.open.len();
        let leads_in = |path: &ImagePath| match path.step(depth) {
            Some(Step::Named(_)) => is_object,
            Some(Step::Each) => !is_object,
            None => false,
        };
        let paths = self.filter(self.next.unwrap_or(0), leads_in);
        if self.deeper > 0 || paths == 0 {
            self.deeper += 1;
            return;
        }
        self.open.push(Open { is_object, paths });
        self.next = if is_object { None } else { Some(paths) };
    }

    /// Leaves the innermost array or object.
    pub(super) fn close(&mut self) {
        if self.deeper > 0 {
            self.deeper -= 1;
        } else {
            self.open.pop();
        }
        if self.deeper == 0 {
            // A comma or another closing bracket follows: until then no value can match.
            self.next = Some(0);
        }
    }

    /// The paths that end at the next value, in order.
    fn here(&self) -> impl Iterator<Item = &ImagePath> {
        let depth = self.open.len();
        let next = self.next.filter(|_| self.deeper == 0).unwrap_or(0);
        self.members(next)
            .map(|(_, path)| path)
            .filter(move |path| path.step(depth).is_none())
    }

    fn filter(&self, set: PathSet, wanted: impl Fn(&ImagePath) -> bool) -> PathSet {
        self.members(set)
            .filter(|(_, path)| wanted(path))
            .fold(0, |set, (bit, _)| set | bit)
    }

    fn members(&self, set: PathSet) -> impl Iterator<Item = (PathSet, &ImagePath)> {
        let bits = (0..PathSet::BITS).map(|index| 1 << index);
        bits.zip(self.paths.iter())
            .filter(move |(bit, _)| set & bit != 0)
    }
}

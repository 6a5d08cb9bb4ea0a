//! Where in an answer the scanner is: how far on the way to the paths where images may be.

use std::sync::Arc;

use super::path::{Holds, JsonPath, Step};

/// A set of paths, by their indexes.
type Places = u32;

#[derive(Debug)]
pub(super) struct Position {
    paths: Arc<[JsonPath]>,
    /// The arrays and objects that are open on the way to a path, outermost first.
    open: Vec<Open>,
    /// How many are open inside of those, away from all paths.
    deeper: usize,
    /// Where the next value is on the way to; `None` while its name is still to come.
    next: Option<Places>,
}

#[derive(Debug)]
struct Open {
    is_object: bool,
    /// Those that are inside.
    paths: Places,
}

impl Position {
    /// Of the paths no more than the first 32 count.
    pub(super) fn new(paths: Arc<[JsonPath]>) -> Self {
        Self {
            paths,
            open: Vec::new(),
            deeper: 0,
            next: Some(Places::MAX),
        }
    }

    /// What the next string is, if it is at a path.
    pub(super) fn holds(&self) -> Option<Holds> {
        self.here().map(|path| path.holds).next()
    }

    /// Whether the next string names a field that may matter.
    pub(super) fn at_name(&self) -> bool {
        self.deeper == 0 && self.next.is_none()
    }

    pub(super) fn name(&mut self, name: &[u8]) {
        let Some(open) = self.open.last() else {
            return;
        };
        let depth = self.open.len() - 1;
        let named = |path: &JsonPath| match path.step(depth) {
            Some(Step::Field(field)) => field.as_bytes() == name,
            _ => false,
        };
        self.next = Some(self.those(open.paths, named));
    }

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

    pub(super) fn open(&mut self, bracket: u8) {
        let is_object = bracket == b'{';
        let depth = self.open.len();
        let leads_in = |path: &JsonPath| match path.step(depth) {
            Some(Step::Field(_)) => is_object,
            Some(Step::Each) => !is_object,
            None => false,
        };
        let paths = self.those(self.next.unwrap_or(0), leads_in);
        if self.deeper > 0 || paths == 0 {
            self.deeper += 1;
            return;
        }
        self.open.push(Open { is_object, paths });
        self.next = if is_object { None } else { Some(paths) };
    }

    pub(super) fn close(&mut self) {
        if self.deeper > 0 {
            self.deeper -= 1;
        } else {
            self.open.pop();
        }
        if self.deeper == 0 {
            // What follows is a comma or another end: nothing is on the way until then.
            self.next = Some(0);
        }
    }

    /// The paths that the next value is at, the first one first.
    fn here(&self) -> impl Iterator<Item = &JsonPath> {
        let depth = self.open.len();
        let next = self.next.filter(|_| self.deeper == 0).unwrap_or(0);
        self.among(next)
            .map(|(_, path)| path)
            .filter(move |path| path.step(depth).is_none())
    }

    fn those(&self, among: Places, wanted: impl Fn(&JsonPath) -> bool) -> Places {
        self.among(among)
            .filter(|(_, path)| wanted(path))
            .fold(0, |set, (bit, _)| set | bit)
    }

    fn among(&self, set: Places) -> impl Iterator<Item = (Places, &JsonPath)> {
        let bits = (0..Places::BITS).map(|index| 1 << index);
        bits.zip(self.paths.iter())
            .filter(move |(bit, _)| set & bit != 0)
    }
}

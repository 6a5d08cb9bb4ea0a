//! Where in an answer the scanner is: how far into `{"data": [{"b64_json": …}]}`.

#[derive(Debug, Default)]
pub(super) struct Position {
    place: Place,
    /// How many arrays and objects are open inside `place`.
    deeper: usize,
    /// In an object: whose value comes next; none while its name is still to come.
    field: Option<Field>,
}

/// The innermost part of the expected shape that is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Outside,
    Root,
    Data,
    Entry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Data,
    B64Json,
    Url,
    Other,
}

impl Position {
    /// Whether the next string may be a picture.
    pub(super) fn at_picture(&self) -> bool {
        let at_field = matches!(self.field, Some(Field::B64Json | Field::Url));
        self.place == Place::Entry && self.deeper == 0 && at_field
    }

    /// Whether the next string is an address, unless it is a data URL.
    pub(super) fn at_url(&self) -> bool {
        self.field == Some(Field::Url)
    }

    /// Whether the next string names a field that may matter.
    pub(super) fn at_name(&self) -> bool {
        let in_object = matches!(self.place, Place::Root | Place::Entry);
        in_object && self.deeper == 0 && self.field.is_none()
    }

    pub(super) fn name(&mut self, name: &[u8]) {
        self.field = Some(match (self.place, name) {
            (Place::Root, b"data") => Field::Data,
            (Place::Entry, b"b64_json") => Field::B64Json,
            (Place::Entry, b"url") => Field::Url,
            _ => Field::Other,
        });
    }

    pub(super) fn comma(&mut self) {
        if self.deeper == 0 {
            self.field = None;
        }
    }

    pub(super) fn open(&mut self, bracket: u8) {
        let inner = match (self.place, self.field, bracket) {
            _ if self.deeper > 0 => None,
            (Place::Outside, _, b'{') => Some(Place::Root),
            (Place::Root, Some(Field::Data), b'[') => Some(Place::Data),
            (Place::Data, _, b'{') => Some(Place::Entry),
            _ => None,
        };
        match inner {
            Some(place) => {
                self.place = place;
                self.field = None;
            }
            None => self.deeper += 1,
        }
    }

    pub(super) fn close(&mut self) {
        if self.deeper > 0 {
            self.deeper -= 1;
            return;
        }
        // What follows is a comma or another end: nothing is named until then.
        self.field = Some(Field::Other);
        self.place = match self.place {
            Place::Entry => Place::Data,
            Place::Data => Place::Root,
            Place::Root | Place::Outside => Place::Outside,
        };
    }
}

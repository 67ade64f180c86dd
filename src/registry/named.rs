//! References with the scheme that people wrote before them, for what is said of them.

use std::fmt;
use std::ops::Deref;

use crate::oci::{Reference, Source};

/// A reference, and whether it was written as an image of layers (`docker://`) or as a SIF file (`oras://`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    scheme: &'static str,
    reference: &'a Reference,
}

impl<'a> Named<'a> {
    pub(super) fn image(reference: &'a Reference) -> Named<'a> {
        Named {
            scheme: "docker",
            reference,
        }
    }

    pub(super) fn artifact(reference: &'a Reference) -> Named<'a> {
        Named { scheme: "oras", reference }
    }
}

impl Deref for Named<'_> {
    type Target = Reference;

    fn deref(&self) -> &Reference {
        self.reference
    }
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.reference)
    }
}

/// `reference`, which is what `source` names.
pub(super) fn named<'a>(source: &Source, reference: &'a Reference) -> Named<'a> {
    match source {
        Source::Artifact(_) => Named::artifact(reference),
        Source::Registry(_) | Source::Layout { .. } | Source::Archive { .. } | Source::Path(_) => Named::image(reference),
    }
}

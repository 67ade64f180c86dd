//! Apps of a workflow as they go into an image: there is no task there, only what the file itself says.

use indexmap::IndexMap;

use super::scope::Scope;
use super::template::{self, TemplateError};
use super::{App, Workflow};

/// An app whose every word is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedApp {
    pub help: Option<String>,
    pub run: Vec<String>,
    pub env: IndexMap<String, String>,
}

impl Workflow {
    /// `app` with the parameters' values in it.
    ///
    /// # Errors
    /// It names what only a stage has (`array.index`, `resources.cpus`).
    pub fn packed(&self, app: &App) -> Result<PackedApp, TemplateError> {
        let scope = Scope::builder().params(&self.params).build();
        Ok(PackedApp {
            help: app.help.clone(),
            run: app
                .run
                .iter()
                .map(|word| template::render(&word.0, &scope))
                .collect::<Result<_, _>>()?,
            env: app
                .env
                .iter()
                .map(|(name, value)| Ok((name.clone(), template::render(&value.0, &scope)?)))
                .collect::<Result<_, _>>()?,
        })
    }
}

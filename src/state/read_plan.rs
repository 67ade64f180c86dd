//! `plan.json`, whole or in part. A task of a large workflow needs its own stage and those that this one needs: the others
//! are passed over in the text and never built.

use std::fmt;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::StateError;
use crate::plan::{self, Plan, StagePlan};
use crate::workflow::StageName;

/// The plan in `text`, which was read from `path`.
pub fn whole(text: &[u8], path: &Path) -> Result<Plan, StateError> {
    version(text, path)?;
    serde_json::from_slice(text).map_err(damaged(path))
}

/// The plan in `text` with `stage` and what it needs, and without the other stages.
pub fn of_stage(text: &[u8], path: &Path, stage: &StageName) -> Result<Plan, StateError> {
    version(text, path)?;
    let part = |wanted: &dyn Fn(&StageName) -> bool| {
        let mut reader = serde_json::Deserializer::from_slice(text);
        Part { wanted }.deserialize(&mut reader).map_err(damaged(path))
    };
    let alone = part(&|name| name == stage)?;
    let needs: Vec<StageName> = (alone.stages.values().flat_map(|planned| &planned.stage.needs))
        .map(|need| need.stage.clone())
        .collect();
    match needs.is_empty() {
        true => Ok(alone),
        false => part(&|name| name == stage || needs.contains(name)),
    }
}

fn version(text: &[u8], path: &Path) -> Result<(), StateError> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        version: u64,
    }
    let head: Head = serde_json::from_slice(text).map_err(damaged(path))?;
    match head.version == u64::from(plan::VERSION) {
        true => Ok(()),
        false => Err(StateError::Version {
            path: path.to_owned(),
            found: head.version,
        }),
    }
}

fn damaged(path: &Path) -> impl Fn(serde_json::Error) -> StateError {
    let path: PathBuf = path.to_owned();
    move |source| StateError::Damaged {
        path: path.clone(),
        source,
    }
}

struct Part<'a> {
    wanted: &'a dyn Fn(&StageName) -> bool,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Plan;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Plan, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Plan;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plan")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plan, A::Error> {
        let (mut version, mut name, mut file, mut dir, mut params, mut lock, mut stages) = (None, None, None, None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => version = Some(map.next_value()?),
                "name" => name = Some(map.next_value()?),
                "file" => file = Some(map.next_value()?),
                "dir" => dir = Some(map.next_value()?),
                "params" => params = Some(map.next_value()?),
                "lock" => lock = Some(map.next_value()?),
                "stages" => stages = Some(map.next_value_seed(Stages { wanted: self.wanted })?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let missing = A::Error::missing_field;
        Ok(Plan {
            version: version.ok_or_else(|| missing("version"))?,
            name: name.ok_or_else(|| missing("name"))?,
            file: file.ok_or_else(|| missing("file"))?,
            dir: dir.ok_or_else(|| missing("dir"))?,
            params: params.ok_or_else(|| missing("params"))?,
            lock: lock.ok_or_else(|| missing("lock"))?,
            stages: stages.ok_or_else(|| missing("stages"))?,
        })
    }
}

struct Stages<'a> {
    wanted: &'a dyn Fn(&StageName) -> bool,
}

impl<'de> DeserializeSeed<'de> for Stages<'_> {
    type Value = IndexMap<StageName, StagePlan>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Stages<'_> {
    type Value = IndexMap<StageName, StagePlan>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stages")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut stages = IndexMap::new();
        while let Some(name) = map.next_key::<StageName>()? {
            if (self.wanted)(&name) {
                stages.insert(name, map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(stages)
    }
}

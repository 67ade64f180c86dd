//! A workflow's data sets into the store.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::FetchError;
use crate::data;
use crate::registry::Session;
use crate::workflow::Workflow;

/// Makes sure that every data set is there; all at once, within the client's bound on connections.
pub async fn data(session: &Session<'_>, workflow: &Workflow) -> Result<(), FetchError> {
    let fetch = async |(name, set): (&String, _)| {
        let fetched = data::fetch(session.client, session.store, set, session.progress).await;
        let failed = |source| FetchError::Data {
            name: name.clone(),
            source: Box::new(source),
        };
        fetched.map(drop).map_err(failed)
    };
    stream::iter(workflow.data.iter().map(fetch))
        .buffer_unordered(session.client.options().connections.max(1))
        .try_collect()
        .await
}

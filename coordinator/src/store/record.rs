//! Typed records over the store: JSON, so that an operator can read them with `sqlite3`.

use serde::{Serialize, de::DeserializeOwned};

use super::{Error, Key, Kv, Range, Result, Revision, Store};

/// A typed record, and the revision to compare with when it is written back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<T> {
    /// Where it is.
    pub key: Key,
    /// What it says.
    pub value: T,
    /// The revision that last wrote it.
    pub revision: Revision,
}

/// What is stored for `value`.
///
/// # Errors
/// [`Error::Codec`] if it cannot be JSON.
pub fn encode<T: Serialize + ?Sized>(key: &Key, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| Error::Codec { key: key.clone(), source })
}

/// What was stored.
///
/// # Errors
/// [`Error::Codec`] if it is not what it should be.
pub fn decode<T: DeserializeOwned>(kv: &Kv) -> Result<Record<T>> {
    let value =
        serde_json::from_slice(&kv.value).map_err(|source| Error::Codec { key: kv.key.clone(), source })?;
    Ok(Record { key: kv.key.clone(), value, revision: kv.mod_rev })
}

/// The record under `key`.
///
/// # Errors
/// Those of [`Store::get`] and of [`decode`].
pub async fn get<T: DeserializeOwned>(store: &dyn Store, key: &Key) -> Result<Option<Record<T>>> {
    store.get(key).await?.as_ref().map(decode).transpose()
}

/// All records of a prefix, in the order of their keys, read a page at a time: records written meanwhile
/// may or may not be among them.
///
/// # Errors
/// Those of [`Store::range`] and of [`decode`].
pub async fn list<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<Record<T>>> {
    let mut found = Vec::new();
    let mut range = Range::prefix(prefix);
    loop {
        let page = store.range(range.clone()).await?;
        for kv in &page.records {
            found.push(decode(kv)?);
        }
        match page.records.last() {
            Some(last) if page.more => range.after = Some(last.key.clone()),
            _ => return Ok(found),
        }
    }
}

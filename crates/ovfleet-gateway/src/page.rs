//! Pages of lists: sizes, and the tokens that lead from one page to the next.
//!
//! A token holds the key of the last row shown, so a row that is there
//! throughout is on exactly one page, whatever comes and goes around it. It is
//! bound to the request it came from, and carries the `as_of` of the first page.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use openvpn_fleet::{AsOf, Position, RunId};
use prost::Message;
use tonic::Status;

use crate::{
    seal::{Purpose, Sealer},
    status,
};

/// Rows on a page when the caller does not say.
pub(crate) const PAGE_SIZE_DEFAULT: usize = 100;
/// Most rows on a page; a larger wish is cut to this.
pub(crate) const PAGE_SIZE_MAX: usize = 1000;

/// The size of a page from `page_size` of a request.
pub(crate) fn size(page_size: i32) -> Result<usize, Status> {
    match usize::try_from(page_size) {
        Ok(0) => Ok(PAGE_SIZE_DEFAULT),
        Ok(size) => Ok(size.min(PAGE_SIZE_MAX)),
        Err(_) => Err(status::invalid(
            "page_size",
            "PAGE_SIZE_INVALID",
            format!("{page_size} is negative; 0 means {PAGE_SIZE_DEFAULT}"),
        )),
    }
}

/// Where a row stands in a list. Which parts are set depends on the order; they
/// compare from the first field to the last.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub(crate) struct RowKey {
    /// Connected since, seconds since 1970.
    #[prost(int64, tag = "1")]
    pub(crate) since: i64,
    /// Common name, or the address of a route: bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) name: Vec<u8>,
    /// Instance.
    #[prost(string, tag = "3")]
    pub(crate) instance: String,
    /// Generation.
    #[prost(fixed64, tag = "4")]
    pub(crate) generation: u64,
    /// Client ID.
    #[prost(uint64, tag = "5")]
    pub(crate) cid: u64,
    /// What tells rows apart that are equal so far.
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) rest: Vec<u8>,
}

/// What a token says: go on behind this row, as of then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Continuation {
    pub(crate) after: RowKey,
    pub(crate) as_of: AsOf,
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(bytes = "vec", tag = "1")]
    query: Vec<u8>,
    #[prost(message, required, tag = "2")]
    after: RowKey,
    #[prost(fixed64, tag = "3")]
    run: u64,
    #[prost(uint64, tag = "4")]
    sequence: u64,
    #[prost(uint64, tag = "5")]
    time_unix_ns: u64,
}

/// A digest of everything in a request that must stay the same from page to
/// page. The caller clears what may change: the token and the size.
pub(crate) fn fingerprint(request: &impl Message) -> Vec<u8> {
    let digest = digest::digest(&digest::SHA256, &request.encode_to_vec());
    digest.as_ref()[..8].to_vec()
}

/// Writes the token that continues `query` behind a row.
pub(crate) fn write(sealer: &Sealer, query: Vec<u8>, continuation: Continuation) -> String {
    let since_epoch = continuation
        .as_of
        .time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    sealer.seal(
        Purpose::Page,
        &Body {
            query,
            after: continuation.after,
            run: continuation.as_of.position.run.0,
            sequence: continuation.as_of.position.sequence,
            time_unix_ns: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
        },
    )
}

/// Reads a token back; `None` for the first page, whose token is empty.
pub(crate) fn read(
    sealer: &Sealer,
    query: &[u8],
    token: &str,
) -> Result<Option<Continuation>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let refuse = |description| status::invalid("page_token", "PAGE_TOKEN_INVALID", description);
    let body: Body = sealer.open(Purpose::Page, token).map_err(|_| {
        refuse("it was not written by this gateway, or was altered; begin without one")
    })?;
    if body.query != query {
        return Err(refuse(
            "it belongs to another request; only page_size and page_token may change from page to page",
        ));
    }
    Ok(Some(Continuation {
        after: body.after,
        as_of: AsOf {
            position: Position {
                run: RunId(body.run),
                sequence: body.sequence,
            },
            time: SystemTime::UNIX_EPOCH + Duration::from_nanos(body.time_unix_ns),
        },
    }))
}

/// Keeps the first `size` rows behind `after`, of any number pushed in any
/// order, in memory for `size + 1` of them.
#[derive(Debug)]
pub(crate) struct Page<R> {
    after: Option<RowKey>,
    size: usize,
    descending: bool,
    rows: std::collections::BTreeMap<RowKey, R>,
}

impl<R> Page<R> {
    pub(crate) const fn new(after: Option<RowKey>, size: usize, descending: bool) -> Self {
        Self {
            after,
            size,
            descending,
            rows: std::collections::BTreeMap::new(),
        }
    }

    /// Offers a row; it is built only if it can be on the page so far.
    pub(crate) fn offer(&mut self, key: RowKey, row: impl FnOnce() -> R) {
        let behind = |a: &RowKey, b: &RowKey| if self.descending { a < b } else { a > b };
        if self
            .after
            .as_ref()
            .is_some_and(|after| !behind(&key, after))
        {
            return;
        }
        // One row more than the page tells whether there is a next one.
        if self.rows.len() > self.size {
            let last = if self.descending {
                self.rows.first_key_value()
            } else {
                self.rows.last_key_value()
            };
            if last.is_some_and(|(last, _)| behind(&key, last)) {
                return;
            }
            if self.descending {
                self.rows.pop_first();
            } else {
                self.rows.pop_last();
            }
        }
        self.rows.insert(key, row());
    }

    /// No row that comes behind all those offered can be on the page.
    pub(crate) fn is_full(&self) -> bool {
        self.rows.len() > self.size
    }

    /// The rows in order, as many as fit into `bytes_max`, and the key of the last
    /// one if there are more behind it. One row is always given: a page without
    /// any would never end the list.
    pub(crate) fn finish(self, bytes_max: usize) -> (Vec<R>, Option<RowKey>)
    where
        R: Message,
    {
        let total = self.rows.len();
        let mut in_order: Box<dyn Iterator<Item = (RowKey, R)>> = if self.descending {
            Box::new(self.rows.into_iter().rev())
        } else {
            Box::new(self.rows.into_iter())
        };
        let (mut rows, mut last, mut bytes) = (Vec::with_capacity(total.min(self.size)), None, 0);
        for (key, row) in in_order.by_ref().take(self.size) {
            bytes += row.encoded_len();
            if bytes > bytes_max && !rows.is_empty() {
                break;
            }
            rows.push(row);
            last = Some(key);
        }
        let more = total > rows.len();
        (rows, last.filter(|_| more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cid: u64) -> RowKey {
        RowKey {
            cid,
            ..RowKey::default()
        }
    }

    /// Pages through `cids` offered in a scrambled order, and gives what was seen.
    fn walk(cids: &[u64], size: usize, bytes_max: usize, descending: bool) -> Vec<u64> {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let mut page = Page::new(after.clone(), size, descending);
            for index in 0..cids.len() {
                let cid = cids[(index * 7) % cids.len()];
                page.offer(key(cid), || cid);
            }
            let (rows, last) = page.finish(bytes_max);
            assert!(rows.len() <= size);
            let bytes: usize = rows.iter().map(Message::encoded_len).sum();
            assert!(bytes <= bytes_max || rows.len() == 1, "{rows:?}");
            seen.extend(rows);
            let Some(last) = last else { return seen };
            after = Some(last);
        }
    }

    /// Fails if a row is skipped or comes twice at any size of page, be the page
    /// cut by its number of rows or by its bytes.
    #[test]
    fn every_row_is_on_exactly_one_page() {
        let cids: Vec<u64> = (0..23).collect();
        for (size, bytes_max) in
            (1..30).flat_map(|size| [0, 3, 10, 1_000].map(|bytes| (size, bytes)))
        {
            assert_eq!(
                walk(&cids, size, bytes_max, false),
                cids,
                "{size} rows, {bytes_max} bytes"
            );
            let mut falling = walk(&cids, size, bytes_max, true);
            falling.reverse();
            assert_eq!(falling, cids, "descending, {size} rows, {bytes_max} bytes");
        }
        assert_eq!(walk(&[], 5, 10, false), Vec::<u64>::new());
    }

    #[test]
    fn a_token_is_bound_to_its_request() {
        let sealer = Sealer::new(b"key");
        let continuation = Continuation {
            after: key(7),
            as_of: AsOf {
                position: Position {
                    run: RunId(1),
                    sequence: 2,
                },
                time: SystemTime::UNIX_EPOCH + Duration::new(1, 3),
            },
        };
        let token = write(&sealer, b"query".to_vec(), continuation.clone());
        assert_eq!(read(&sealer, b"query", &token).unwrap(), Some(continuation));
        let error = read(&sealer, b"other", &token).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(read(&sealer, b"query", "nonsense").is_err());
        assert_eq!(read(&sealer, b"query", "").unwrap(), None);
    }
}

//! Lists: all their pages, and the instances that they could not see.

use ovfleet_proto::v1::{AsOf, Condition, GetSummaryRequest, InstanceSelector, Unreachable};
use tonic::Status;

use crate::{
    failure::Verdict,
    gateway::Gateway,
    output::note,
    text::{elapsed, enum_name, escape},
};

/// Rows per page, where nobody limits them: few calls, and each answer small.
const PAGE_SIZE: u32 = 500;
/// The most rows that a page of the API has.
const PAGE_SIZE_MAX: u32 = 1_000;

/// One page, whatever its rows are.
pub(crate) struct Page<Row> {
    pub(crate) rows: Vec<Row>,
    pub(crate) next_page_token: String,
    pub(crate) unreachable: Vec<Unreachable>,
    pub(crate) as_of: Option<AsOf>,
}

/// All pages, or as many rows as were wanted.
pub(crate) struct Listing<Row> {
    pub(crate) rows: Vec<Row>,
    pub(crate) unreachable: Vec<Unreachable>,
    pub(crate) as_of: Option<AsOf>,
    /// There are rows beyond the limit.
    pub(crate) more: bool,
}

/// Follows the pages of a list until its end or `limit` rows. `call` gets a
/// page size, the same for every page, and a page token.
pub(crate) async fn collect<Row>(
    limit: Option<u32>,
    mut call: impl AsyncFnMut(i32, String) -> Result<Page<Row>, Status>,
) -> Result<Listing<Row>, Status> {
    let page_size = limit.unwrap_or(PAGE_SIZE).min(PAGE_SIZE_MAX).cast_signed();
    let limit = limit.map_or(usize::MAX, |limit| limit as usize);
    let mut listing = Listing {
        rows: Vec::new(),
        unreachable: Vec::new(),
        as_of: None,
        more: false,
    };
    let mut page_token = String::new();
    loop {
        let page = call(page_size, page_token).await?;
        listing.rows.extend(page.rows);
        // Every page names them; a later one knows better.
        for late in page.unreachable {
            let known = listing
                .unreachable
                .iter_mut()
                .find(|early| early.gateway == late.gateway && early.instance == late.instance);
            match known {
                Some(early) => *early = late,
                None => listing.unreachable.push(late),
            }
        }
        listing.as_of = listing.as_of.or(page.as_of);
        page_token = page.next_page_token;
        listing.more = listing.rows.len() > limit || !page_token.is_empty();
        if page_token.is_empty() || listing.rows.len() >= limit {
            listing.rows.truncate(limit);
            return Ok(listing);
        }
    }
}

/// Says on standard error which instances are missing from an answer, of how
/// many.
pub(crate) async fn report_unreachable(
    gateway: &Gateway,
    selector: &InstanceSelector,
    unreachable: &[Unreachable],
) -> Verdict {
    let (unknown, unseen): (Vec<&Unreachable>, Vec<_>) = unreachable
        .iter()
        .partition(|row| row.condition == i32::from(Condition::Unspecified));
    for row in &unknown {
        note(&format!(
            "ovfleet: no such instance: {}",
            full_name(&row.gateway, &row.instance)
        ));
    }
    if !unseen.is_empty() {
        // Only this call tells of how many; without it the sentence is shorter.
        let request = GetSummaryRequest {
            selector: Some(selector.clone()),
            group_by: Vec::new(),
        };
        let all = gateway.fleet().get_summary(gateway.request(request)).await;
        let all = all.ok().and_then(|response| response.into_inner().totals);
        let base = all
            .map(|totals| format!(" of {}", totals.instances))
            .unwrap_or_default();
        note(&format!(
            "ovfleet: {}{base} instances could not be asked:",
            unseen.len()
        ));
        for row in &unseen {
            note(&format!("  {}", unreachable_line(row)));
        }
    }
    Verdict::done_if(unreachable.is_empty())
}

fn unreachable_line(row: &Unreachable) -> String {
    let mut line = format!(
        "{}: {}",
        full_name(&row.gateway, &row.instance),
        enum_name!(Condition, "CONDITION_", row.condition)
    );
    match &row.age {
        Some(age) => line += &format!(", last seen {} ago", elapsed(Some(age))),
        None => line += ", never seen",
    }
    if !row.message.is_empty() {
        line += &format!(": {}", escape(&row.message));
    }
    line
}

/// `gateway/instance`, or the instance alone where the gateway is not known.
pub(crate) fn full_name(gateway: &str, instance: &str) -> String {
    let (gateway, instance) = (escape(gateway), escape(instance));
    if gateway.is_empty() {
        instance
    } else {
        format!("{gateway}/{instance}")
    }
}

/// Says that a list goes on.
pub(crate) fn report_limit<Row>(listing: &Listing<Row>) {
    if listing.more {
        note(&format!(
            "ovfleet: the first {} rows; --limit shows more",
            listing.rows.len()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable(instance: &str, message: &str) -> Unreachable {
        Unreachable {
            instance: instance.into(),
            message: message.into(),
            ..Unreachable::default()
        }
    }

    /// Serves 0, 1, 2, … `total - 1` in pages of at most two, whatever is asked.
    async fn numbers(limit: Option<u32>, total: u32) -> (Vec<u32>, bool, Vec<String>) {
        let mut sizes = Vec::new();
        let listing = collect(limit, async |size, token| {
            sizes.push(size);
            let start: u32 = if token.is_empty() {
                0
            } else {
                token.parse().unwrap()
            };
            let end = total.min(start + 2);
            Ok(Page {
                rows: (start..end).collect(),
                next_page_token: if end < total {
                    end.to_string()
                } else {
                    String::new()
                },
                unreachable: vec![unreachable("eu1", &end.to_string())],
                as_of: Some(AsOf {
                    cursor: start.to_string(),
                    time: None,
                }),
            })
        })
        .await
        .unwrap();
        assert!(
            sizes.windows(2).all(|pair| pair[0] == pair[1]),
            "a token holds for its page size"
        );
        assert_eq!(
            listing.as_of.unwrap().cursor,
            "0",
            "the moment of the first page"
        );
        let messages = listing
            .unreachable
            .into_iter()
            .map(|row| row.message)
            .collect();
        (listing.rows, listing.more, messages)
    }

    #[tokio::test]
    async fn pages_are_followed_to_the_end_or_the_limit() {
        assert_eq!(
            numbers(None, 5).await,
            (vec![0, 1, 2, 3, 4], false, vec!["5".into()])
        );
        assert_eq!(
            numbers(Some(3), 5).await,
            (vec![0, 1, 2], true, vec!["4".into()])
        );
        assert_eq!(
            numbers(Some(4), 4).await,
            (vec![0, 1, 2, 3], false, vec!["4".into()])
        );
        assert_eq!(
            numbers(Some(2), 4).await,
            (vec![0, 1], true, vec!["2".into()])
        );
        assert_eq!(numbers(None, 0).await, (vec![], false, vec!["0".into()]));
    }

    #[test]
    fn an_unseen_instance_is_named_with_its_condition_and_age() {
        let row = Unreachable {
            gateway: "vpn1".into(),
            instance: "eu3".into(),
            condition: Condition::SlotBusy.into(),
            age: Some(prost_types::Duration {
                seconds: 185,
                nanos: 0,
            }),
            message: "held by socat (pid 12)".into(),
        };
        assert_eq!(
            unreachable_line(&row),
            "vpn1/eu3: SLOT_BUSY, last seen 3m ago: held by socat (pid 12)"
        );
    }
}

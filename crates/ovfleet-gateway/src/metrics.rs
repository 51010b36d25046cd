//! `/metrics`: everything is sampled when it is asked for, from where it is kept.
//!
//! Labels name instances, conditions, kinds and outcomes, never clients: their
//! number has no bound, and who is connected is nobody's business here.

use std::{fmt, sync::Arc};

use openvpn_fleet::{EventClass, Fleet, Instance, Kind, Method, Outcome, Position};
use openvpn_mux::{Left, Verdict};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use crate::{
    idle::Activity,
    inventory::Reloads,
    listen::Admission,
    mux::MuxFigures,
    services::Context,
    state::{Figures, Trouble},
};

/// The type of what [`Metrics::render`] gives.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told, and where it is looked up.
pub(crate) struct Metrics(Registry);

struct Sampler {
    context: Arc<Context>,
    activity: Activity,
    mux: Arc<MuxFigures>,
    admission: Admission,
}

/// One instance at the moment of the sample.
struct Sample {
    instance: Arc<Instance>,
    condition: &'static str,
    clients: usize,
    half_open_clients: usize,
    bytes_received: u64,
    bytes_sent: u64,
    sessions: u64,
    panics: u64,
}

impl Metrics {
    pub(crate) fn new(
        context: Arc<Context>,
        activity: Activity,
        mux: Arc<MuxFigures>,
        admission: Admission,
    ) -> Self {
        let mut registry = Registry::with_prefix("ovfleet");
        registry.register_collector(Box::new(Sampler {
            context,
            activity,
            mux,
            admission,
        }));
        Self(registry)
    }

    /// The figures in the text form of OpenMetrics.
    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.0)?;
        Ok(out)
    }
}

impl Collector for Sampler {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let fleet = &self.context.fleet;
        gateway(&mut encoder, fleet)?;
        config(&mut encoder, self.context.inventory.reloads())?;
        instances(&mut encoder, &samples(fleet))?;
        journal(&mut encoder, fleet)?;
        actions(&mut encoder, fleet)?;
        if self.context.state.is_durable() {
            state(&mut encoder, &self.context.state.figures())?;
        }
        if let Some(store) = &self.context.store {
            let journal = fleet.journal();
            let written = Position {
                run: journal.run(),
                sequence: *store.written().borrow(),
            };
            let help = "How far the events on disk are behind the newest event";
            gauge(
                &mut encoder,
                "state_journal_lag",
                help,
                Some(&Unit::Seconds),
            )?
            .encode_gauge(&journal.lag(written).as_secs_f64())?;
        }
        mux(&mut encoder, &self.mux)?;
        self.callers(&mut encoder)
    }
}

impl Sampler {
    fn callers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Context { fleet, streams, .. } = &*self.context;
        let journal = fleet.journal();
        let lag = streams.hindmost().map_or(0.0, |sequence| {
            journal
                .lag(Position {
                    run: journal.run(),
                    sequence,
                })
                .as_secs_f64()
        });
        let help = "Connections of gRPC callers";
        gauge(encoder, "callers", help, None)?.encode_gauge(&self.activity.connections())?;
        let help = "Times that no connection could be accepted, mostly for want of open files";
        let failures = self.admission.failures();
        counter(encoder, "accept_failures", help, None)?
            .encode_counter::<NoLabelSet, _, u64>(&failures, None)?;
        let help = "Open event streams and watches";
        gauge(encoder, "streams", help, None)?.encode_gauge(&streams.count())?;
        let help = "How far the slowest event stream is behind the newest event";
        gauge(encoder, "stream_lag", help, Some(&Unit::Seconds))?.encode_gauge(&lag)
    }
}

fn gateway(encoder: &mut DescriptorEncoder<'_>, fleet: &Fleet) -> fmt::Result {
    let labels = [
        ("name", fleet.gateway().as_str()),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    encoder
        .encode_descriptor("gateway", "This gateway", None, MetricType::Info)?
        .encode_info(&labels)
}

fn config(encoder: &mut DescriptorEncoder<'_>, reloads: Reloads) -> fmt::Result {
    let help = "Times that the configuration was read again, by what became of it";
    let mut metric = counter(encoder, "config_reloads", help, None)?;
    count(&mut metric, &[("result", "taken")], reloads.taken)?;
    count(&mut metric, &[("result", "refused")], reloads.refused)?;
    let help = "Whether what was read last is in force: 0, the old configuration had to stay";
    gauge(encoder, "config_last_reload_successful", help, None)?
        .encode_gauge(&u64::from(!reloads.is_last_refused))
}

fn samples(fleet: &Fleet) -> Vec<Sample> {
    let sample = |instance: Arc<Instance>| {
        instance.with_table(|table| {
            let status = table.status();
            // Who is connected to a daemon that cannot be asked is not known.
            let known = |count: usize| if status.is_attached() { count } else { 0 };
            Sample {
                instance: Arc::clone(&instance),
                condition: status.condition.as_str(),
                clients: known(table.client_count()),
                half_open_clients: known(table.half_open_count()),
                bytes_received: status.bytes_received,
                bytes_sent: status.bytes_sent,
                sessions: status.sessions,
                panics: instance.panics(),
            }
        })
    };
    fleet.instances().into_iter().map(sample).collect()
}

fn instances(encoder: &mut DescriptorEncoder<'_>, samples: &[Sample]) -> fmt::Result {
    let mut metric = gauge(
        encoder,
        "instances",
        "Instances by condition of their session",
        None,
    )?;
    for condition in CONDITIONS {
        let count = samples
            .iter()
            .filter(|sample| sample.condition == condition)
            .count();
        family(&mut metric, &[("condition", condition)], |metric| {
            metric.encode_gauge(&count)
        })?;
    }
    let help = "Clients connected to an instance that can be asked now";
    let mut metric = gauge(encoder, "instance_clients", help, None)?;
    for sample in samples {
        family(&mut metric, &sample.labels(), |metric| {
            metric.encode_gauge(&sample.clients)
        })?;
    }
    let help = "Clients that have begun a handshake and have no name yet";
    let mut metric = gauge(encoder, "instance_half_open_clients", help, None)?;
    for sample in samples {
        let count = &sample.half_open_clients;
        family(&mut metric, &sample.labels(), |metric| {
            metric.encode_gauge(count)
        })?;
    }
    let help = "Bytes the daemon received from its clients, as far as the gateway saw them";
    let mut metric = counter(encoder, "instance_received", help, Some(&Unit::Bytes))?;
    for sample in samples {
        count(&mut metric, &sample.labels(), sample.bytes_received)?;
    }
    let help = "Bytes the daemon sent to its clients, as far as the gateway saw them";
    let mut metric = counter(encoder, "instance_sent", help, Some(&Unit::Bytes))?;
    for sample in samples {
        count(&mut metric, &sample.labels(), sample.bytes_sent)?;
    }
    let help = "Management sessions made with the instance: reconnects, and the first";
    let mut metric = counter(encoder, "instance_sessions", help, None)?;
    for sample in samples {
        count(&mut metric, &sample.labels(), sample.sessions)?;
    }
    let help = "Times that the task of the instance failed, for a bug of ours, and was begun anew";
    let mut metric = counter(encoder, "instance_panics", help, None)?;
    for sample in samples {
        count(&mut metric, &sample.labels(), sample.panics)?;
    }
    Ok(())
}

impl Sample {
    fn labels(&self) -> [(&'static str, &str); 1] {
        [("instance", self.instance.name().as_str())]
    }
}

/// Every condition, so that none is absent at zero.
const CONDITIONS: [&str; 8] = [
    "CONNECTING",
    "SLOT_BUSY",
    "AUTH_FAILED",
    "SYNCING",
    "ATTACHED",
    "UNRESPONSIVE",
    "UNREACHABLE",
    "PAUSED",
];

fn journal(encoder: &mut DescriptorEncoder<'_>, fleet: &Fleet) -> fmt::Result {
    let journal = fleet.journal();
    let mut metric = counter(encoder, "events", "Events by kind", None)?;
    for kind in Kind::ALL {
        count(
            &mut metric,
            &[("kind", kind.as_str())],
            journal.counts().events(*kind),
        )?;
    }
    let depth = journal.depth();
    let mut metric = gauge(
        encoder,
        "journal_entries",
        "Events kept, by class of retention",
        None,
    )?;
    for class in &depth {
        let labels = [("class", class_name(class.class))];
        family(&mut metric, &labels, |metric| {
            metric.encode_gauge(&class.entries)
        })?;
    }
    let help = "Memory of the events kept, by class of retention";
    let mut metric = gauge(encoder, "journal_size", help, Some(&Unit::Bytes))?;
    for class in &depth {
        let labels = [("class", class_name(class.class))];
        family(&mut metric, &labels, |metric| {
            metric.encode_gauge(&class.bytes)
        })?;
    }
    let help = "Events thrown away for age or want of room, by class of retention";
    let mut metric = counter(encoder, "journal_evicted", help, None)?;
    for class in &depth {
        count(
            &mut metric,
            &[("class", class_name(class.class))],
            class.evicted,
        )?;
    }
    Ok(())
}

fn class_name(class: EventClass) -> &'static str {
    match class {
        EventClass::Lifecycle => "lifecycle",
        EventClass::Log => "log",
        EventClass::Raw => "raw",
    }
}

fn actions(encoder: &mut DescriptorEncoder<'_>, fleet: &Fleet) -> fmt::Result {
    let counts = fleet.journal().counts();
    let help = "Targets of kill and signal commands that have ended, by outcome";
    let mut metric = counter(encoder, "action_targets", help, None)?;
    for method in Method::ALL {
        for outcome in Outcome::ALL {
            let labels = [("method", method.as_str()), ("outcome", outcome.as_str())];
            count(&mut metric, &labels, counts.targets(method, outcome))?;
        }
    }
    Ok(())
}

fn state(encoder: &mut DescriptorEncoder<'_>, figures: &Figures) -> fmt::Result {
    let help = "Whether the state directory takes no changes, and why: 1 is the present trouble";
    let mut metric = gauge(encoder, "state_trouble", help, None)?;
    for trouble in Trouble::ALL {
        let is_so = u8::from(figures.trouble == Some(trouble));
        family(&mut metric, &[("cause", trouble.as_str())], |metric| {
            metric.encode_gauge(&u64::from(is_so))
        })?;
    }
    let help = "Writes to the state directory that succeeded";
    counter(encoder, "state_writes", help, None)?
        .encode_counter::<NoLabelSet, _, u64>(&figures.writes, None)?;
    let help = "Writes to the state directory that failed";
    counter(encoder, "state_write_failures", help, None)?
        .encode_counter::<NoLabelSet, _, u64>(&figures.failures, None)?;
    let help = "Time that writes to the state directory took";
    counter(encoder, "state_write", help, Some(&Unit::Seconds))?
        .encode_counter::<NoLabelSet, _, u64>(&figures.write_time.as_secs_f64(), None)?;
    let help = "Size of the state on disk";
    gauge(encoder, "state_size", help, Some(&Unit::Bytes))?.encode_gauge(&figures.bytes)
}

fn mux(encoder: &mut DescriptorEncoder<'_>, figures: &MuxFigures) -> fmt::Result {
    let help = "Tools connected to the virtual management sockets of an instance";
    let mut metric = gauge(encoder, "mux_tools", help, None)?;
    for (instance, tools) in figures.tools() {
        family(&mut metric, &[("instance", instance.as_str())], |metric| {
            metric.encode_gauge(&tools)
        })?;
    }
    let help = "Commands of tools, by what became of them";
    let mut metric = counter(encoder, "mux_commands", help, None)?;
    for verdict in Verdict::ALL {
        let labels = [("verdict", verdict.as_str())];
        count(&mut metric, &labels, figures.counts.commands(verdict))?;
    }
    let help = "Tools that are gone, by why";
    let mut metric = counter(encoder, "mux_tools_gone", help, None)?;
    for left in Left::ALL {
        let labels = [("reason", left.as_str())];
        count(&mut metric, &labels, figures.counts.left(left))?;
    }
    Ok(())
}

fn gauge<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    unit: Option<&'a Unit>,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Gauge)
}

fn counter<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    unit: Option<&'a Unit>,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Counter)
}

fn family(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    encode(&mut metric.encode_family(labels)?)
}

fn count(metric: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family(metric, labels, |metric| {
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    })
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampler").finish_non_exhaustive()
    }
}

//! The gateway's own log.

use std::{fs::OpenOptions, io, path::Path};

use anyhow::{Context as _, Result};
use ovfleet_gateway::{LogBroadcast, log_broadcast};
use tracing::Level;
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt, fmt::writer::BoxMakeWriter, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::args::ServeArgs;

/// `--log-level`: the numbers of OpenVPN 3 Linux's services, or names.
pub(crate) fn level(text: &str) -> Result<Level, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        // 0: fatal, 1: critical and errors, 2: warnings, 3: information, 4 and
        // 5: verbose, 6: debug.
        "0" | "1" | "error" => Level::ERROR,
        "2" | "warn" | "warning" => Level::WARN,
        "3" | "info" => Level::INFO,
        "4" | "5" | "debug" => Level::DEBUG,
        "6" | "trace" => Level::TRACE,
        _ => return Err("levels are 0 to 6, or error, warn, info, debug, trace".to_owned()),
    })
}

/// Starts to log where the command line says; with `--signal-broadcast` also to
/// what is given back, for the gateway's events.
pub(crate) fn start(args: &ServeArgs) -> Result<Option<LogBroadcast>> {
    let lines = fmt::layer()
        .with_ansi(args.colour)
        .with_writer(writer(args.log_file.as_deref())?)
        .with_filter(ours(args.log_level));
    let (layer, broadcast) = args.signal_broadcast.then(log_broadcast).unzip();
    tracing_subscriber::registry()
        .with(lines)
        .with(layer)
        .try_init()
        .context("cannot start the log")?;
    Ok(broadcast)
}

/// Our own crates at this level, those we use at most with warnings: their
/// frames and timers are noise to an operator.
fn ours(level: Level) -> Targets {
    Targets::new()
        .with_target("ovfleet", level)
        .with_target("openvpn", level)
        .with_default(level.min(Level::WARN))
}

fn writer(file: Option<&Path>) -> Result<BoxMakeWriter> {
    Ok(match file {
        None => BoxMakeWriter::new(io::stderr),
        Some(path) if path.as_os_str() == "stdout:" => BoxMakeWriter::new(io::stdout),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            BoxMakeWriter::new(
                file.with_context(|| format!("cannot write the log {}", path.display()))?,
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_numbers_or_names() {
        assert_eq!(level("0"), Ok(Level::ERROR));
        assert_eq!(level("3"), level("info"));
        assert_eq!(level("6"), level("TRACE"));
        assert!(level("7").is_err() && level("").is_err());
    }

    #[test]
    fn other_peoples_crates_only_warn() {
        let targets = ours(Level::TRACE);
        assert!(targets.would_enable("openvpn_session::driver", &Level::TRACE));
        assert!(targets.would_enable("h2::codec", &Level::WARN));
        assert!(!targets.would_enable("h2::codec", &Level::INFO));
        assert!(!ours(Level::ERROR).would_enable("h2", &Level::WARN));
    }
}

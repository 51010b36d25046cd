//! The gateway's own log.

use tracing::Level;

/// `--log-level`: the numbers of OpenVPN 3 Linux's services, or names.
pub(crate) fn level(text: &str) -> Result<Level, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        // 0: fatal, 1: critical and errors, 2: warnings, 3: information, then
        // verbose 1 and 2, and debug.
        "0" | "1" | "error" => Level::ERROR,
        "2" | "warn" | "warning" => Level::WARN,
        "3" | "info" => Level::INFO,
        "4" | "5" | "debug" => Level::DEBUG,
        "6" | "trace" => Level::TRACE,
        _ => return Err("levels are 0 to 6, or error, warn, info, debug, trace".to_owned()),
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
}

//! What of two daemons' lines must be equal.

/// How a time up to 2.4 begins.
const WEEKDAYS: [&str; 7] = ["Mon ", "Tue ", "Wed ", "Thu ", "Fri ", "Sat ", "Sun "];

/// What may differ between a real daemon's line and ours: times, numbers, certificates.
pub(crate) fn normalise(line: &str) -> String {
    for fixed in [
        ">CLIENT:ENV,tls_serial",
        ">CLIENT:ENV,tls_digest",
        ">CLIENT:ENV,tls_id",
        ">CLIENT:ENV,X509_1",
    ] {
        if line.starts_with(fixed) {
            return line.split('=').next().unwrap_or(line).to_owned();
        }
    }
    let mut normal = String::new();
    let mut digits = 0;
    for character in line.chars().chain(['\0']) {
        if character.is_ascii_digit() {
            digits += 1;
            normal.push(character);
            continue;
        }
        if digits >= 4 {
            normal.truncate(normal.len() - digits);
            normal.push('#');
        }
        digits = 0;
        normal.push(character);
    }
    normal.pop();
    // A process's number may be small; the time that is left to decide is.
    for word in ["pid=", ",AUTH_PENDING,timeout "] {
        if let Some((before, rest)) = normal.split_once(word) {
            let rest = rest.trim_start_matches(|next: char| next.is_ascii_digit() || next == '#');
            normal = format!("{before}{word}#{rest}");
        }
    }
    for (pattern, digits) in [("#-dd-dd dd:dd:dd", 16), ("exit in d second", 16)] {
        if let Some(start) = find_pattern(&normal, pattern) {
            normal.replace_range(start..start + digits, "*");
        }
    }
    if let Some(start) = WEEKDAYS.iter().find_map(|day| normal.find(day)) {
        // `Fri Nov 20 16:26:04 #`; a copy of the year is left of it.
        let end = normal[start..]
            .find('#')
            .map_or(normal.len(), |year| start + year);
        normal.replace_range(start..end, "");
    }
    for device in [
        "tun-a", "tun-c", "tun-s", "tun-h", "tun-g1", "capt1", "capt6",
    ] {
        normal = normal.replace(device, "tun0");
    }
    if let Some(start) = [" tun", "=tun"].iter().find_map(|word| normal.find(word)) {
        // The kernel numbers them.
        let number = start + " tun".len();
        let rest = normal[number..].trim_start_matches(|next: char| next.is_ascii_digit());
        if rest.len() < normal.len() - number {
            normal = format!("{}0{rest}", &normal[..number]);
        }
    }
    normal
}

/// Where `pattern` is, with `d` for a digit.
fn find_pattern(text: &str, pattern: &str) -> Option<usize> {
    let matches = |window: &[u8]| {
        window
            .iter()
            .zip(pattern.bytes())
            .all(|(byte, wanted)| match wanted {
                b'd' if pattern.starts_with('#') => byte.is_ascii_digit(),
                b'd' => byte.is_ascii_digit() || *byte == b'd',
                wanted => *byte == wanted,
            })
    };
    text.as_bytes().windows(pattern.len()).position(matches)
}

/// Sorts table rows that follow each other: their order is that of a hash table.
pub(crate) fn sort_rows(lines: &mut [String]) {
    for rows in lines.split_mut(|line| !is_row(line)) {
        rows.sort_unstable();
    }
}

fn is_row(line: &str) -> bool {
    if let Some(line) = line.strip_prefix(">LOG:") {
        // SIGUSR2 puts a status there; its rows end with a time.
        return line.matches(',').count() >= 5 && line.ends_with('*');
    }
    /// What else has as many commas as a row of `status 1`; `#` is a time.
    const OTHERS: [&str; 9] = [
        ">",
        "#",
        "HEADER",
        "TITLE",
        "TIME",
        "Common Name,",
        "Virtual Address,",
        "SUCCESS",
        "ERROR",
    ];
    line.starts_with("CLIENT_LIST")
        || line.starts_with("ROUTING_TABLE")
        || line.matches(',').count() >= 3 && !OTHERS.iter().any(|other| line.starts_with(other))
}

/// Sorts lines, and `>CLIENT:` blocks as if each were one line.
fn sort_units(lines: Vec<String>) -> Vec<String> {
    let mut units: Vec<Vec<String>> = Vec::new();
    for line in lines {
        match units.last_mut() {
            Some(block) if line.starts_with(">CLIENT:ENV,") => block.push(line),
            _ => units.push(vec![line]),
        }
    }
    units.sort_unstable();
    units.concat()
}

/// How a transcript is to be compared.
#[derive(Clone, Copy, Default)]
pub(crate) struct Comparison {
    /// Lines with any of these come and go as they like, on both sides.
    pub(crate) noise: &'static [&'static str],
    /// The same.
    pub(crate) more_noise: &'static [&'static str],
    /// Whether lines between two writes may come in any order; a `>CLIENT:` block stays whole.
    pub(crate) any_order: bool,
}

impl Comparison {
    pub(crate) fn is_noise(&self, line: &str) -> bool {
        let noise = self.noise.iter().chain(self.more_noise);
        noise.into_iter().any(|noise| line.contains(noise))
    }

    pub(crate) fn compare(&self, expected: &[&str], received: &[String], transcript: &str) {
        let prepare = |lines: Vec<String>| {
            let mut lines: Vec<String> = lines.iter().map(|line| normalise(line)).collect();
            sort_rows(&mut lines);
            if self.any_order {
                lines = sort_units(lines);
            }
            lines
        };
        let expected = prepare(expected.iter().map(|line| (*line).to_owned()).collect());
        let received = prepare(received.to_vec());
        if received != expected {
            let only = |here: &[String], there: &[String]| -> Vec<String> {
                let here = here.iter().filter(|line| !there.contains(line));
                here.cloned().collect()
            };
            panic!(
                "{transcript}: missing {:#?}, instead {:#?}; got {received:#?}",
                only(&expected, &received),
                only(&received, &expected),
            );
        }
    }
}

/// A comparison that forgives too much would let every replay pass.
#[test]
fn only_times_numbers_and_certificates_are_forgiven() {
    for (line, other) in [
        ("SUCCESS: pid=26626", "SUCCESS: pid=12"),
        ("Updated,2026-11-20 14:58:23", "Updated,2027-01-02 03:04:05"),
        (">CLIENT:ENV,tls_serial_0=5", ">CLIENT:ENV,tls_serial_0=7"),
        (
            "Updated,Fri Nov 20 16:25:43 2026",
            "Updated,Sat Dec  5 01:02:03 2026",
        ),
    ] {
        assert_eq!(normalise(line), normalise(other));
    }
    for (line, other) in [
        ("SUCCESS: hold=0", "SUCCESS: hold=1"),
        (">CLIENT:ESTABLISHED,1", ">CLIENT:ESTABLISHED,2"),
        ("10.81.0.2,alice", "10.81.0.3,alice"),
        (">CLIENT:ENV,n_clients=2", ">CLIENT:ENV,n_clients=3"),
        (
            "Updated,Fri Nov 20 16:25:43 2026",
            "Updated,2026-11-20 16:25:43",
        ),
    ] {
        assert_ne!(normalise(line), normalise(other));
    }
}

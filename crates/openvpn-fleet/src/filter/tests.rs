//! What a list shows is what a kill hits: so every field, and their combination.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::name::GatewayName;

fn gateway() -> GatewayName {
    GatewayName::new("gw").expect("a name")
}

fn instance(name: &str) -> InstanceName {
    InstanceName::new(name).expect("a name")
}

fn real(patterns: &[&str]) -> ClientFilter {
    ClientFilter {
        real_addresses: patterns
            .iter()
            .map(|text| AddressPattern::parse_real(text).expect(text))
            .collect(),
        ..ClientFilter::default()
    }
}

fn virtual_(patterns: &[&str]) -> ClientFilter {
    ClientFilter {
        virtual_addresses: patterns
            .iter()
            .map(|text| AddressPattern::parse_virtual(text).expect(text))
            .collect(),
        ..ClientFilter::default()
    }
}

fn identity<'a>(
    instance: &'a InstanceName,
    real_address: &'a str,
    virtual_address: &'a str,
) -> ClientIdentity<'a> {
    ClientIdentity {
        instance,
        generation: Generation(1),
        cid: Cid(1),
        common_name: b"alice",
        username: b"",
        real_address: real_address.as_bytes(),
        virtual_address: virtual_address.as_bytes(),
        virtual_ipv6_address: b"fd00::2",
        half_open: false,
    }
}

/// Every way in which a daemon of some version writes where a client comes from.
#[test]
fn real_addresses_of_every_version_match() {
    let eu1 = instance("eu1");
    for (pattern, address, expected) in [
        ("192.0.2.7", "192.0.2.7:51820", true),
        ("192.0.2.7", "udp4:192.0.2.7:51820", true),
        ("192.0.2.7", "tcp4-server:192.0.2.7:51820", true),
        ("192.0.2.7", "udp6:192.0.2.7:51820", true),
        ("192.0.2.7", "[::ffff:192.0.2.7]:51820", true),
        ("192.0.2.7", "192.0.2.77:51820", false),
        ("192.0.2.0/24", "192.0.2.77:51820", true),
        ("192.0.2.0/24", "192.0.3.77:51820", false),
        ("192.0.2.7:51820", "192.0.2.7:51820", true),
        ("192.0.2.7:51820", "192.0.2.7:51821", false),
        ("2001:db8::1", "2001:db8::1", true),
        ("2001:db8::1", "udp6:[2001:db8::1]:1194", true),
        ("2001:db8::/32", "udp6:[2001:db8::1]:1194", true),
        ("[2001:db8::1]:1194", "udp6:[2001:db8::1]:1194", true),
        // Before 2.7 the port of an IPv6 peer is not known: it cannot be the one that is meant.
        ("[2001:db8::1]:1194", "2001:db8::1", false),
        ("192.0.2.7", "", false),
        ("0.0.0.0/0", "no address at all", false),
    ] {
        assert_eq!(
            real(&[pattern]).matches(&gateway(), &identity(&eu1, address, "")),
            expected,
            "{pattern} {address}"
        );
    }
}

/// Addresses inside the VPN, networks behind a client and cached routes.
#[test]
fn virtual_addresses_match_networks_that_contain_them() {
    let eu1 = instance("eu1");
    for (pattern, address, expected) in [
        ("10.8.0.2", "10.8.0.2", true),
        ("10.8.0.2", "10.8.0.2C", true),
        ("10.8.0.0/16", "10.8.0.2", true),
        ("10.8.0.2", "10.8.0.22", false),
        ("fd00::2", "10.8.0.2", true),
        ("fd00::/64", "", true),
        ("10.77.0.0/16", "10.77.3.0/24", true),
        ("10.77.0.0/16", "10.77.3.0/255.255.255.0", true),
        ("10.77.3.0/25", "10.77.3.0/24", false),
        ("10.8.0.2", "00:11:22:33:44:55", false),
    ] {
        assert_eq!(
            virtual_(&[pattern]).matches(&gateway(), &identity(&eu1, "", address)),
            expected,
            "{pattern} {address}"
        );
    }
}

/// A pattern that is none is refused with its text, not taken for one that matches nobody.
#[test]
fn malformed_patterns_are_refused() {
    for text in [
        "",
        "alice",
        "1.2.3",
        "1.2.3.4:x",
        "1.2.3.4/33",
        "1.2.3.4:5/24",
        "::1:1194:",
    ] {
        let error = AddressPattern::parse_real(text).expect_err(text);
        assert!(error.to_string().contains(text));
    }
    assert!(matches!(
        AddressPattern::parse_virtual("10.8.0.2:5"),
        Err(AddressPatternError::PortNotAllowed { .. })
    ));
}

/// A reference names one client of one generation of one instance of one gateway.
#[test]
fn refs_match_exactly() {
    let eu1 = instance("eu1");
    let named = ClientRef {
        gateway: gateway(),
        instance: eu1.clone(),
        generation: Generation(1),
        cid: Cid(1),
    };
    let is_meant = |named: &ClientRef| {
        let filter = ClientFilter {
            refs: [named.clone()].into(),
            ..ClientFilter::default()
        };
        filter.matches(&gateway(), &identity(&eu1, "", ""))
    };
    assert!(is_meant(&named));
    for other in [
        ClientRef {
            gateway: GatewayName::new("gw2").expect("a name"),
            ..named.clone()
        },
        ClientRef {
            instance: instance("eu2"),
            ..named.clone()
        },
        ClientRef {
            generation: Generation(2),
            ..named.clone()
        },
        ClientRef {
            cid: Cid(2),
            ..named.clone()
        },
    ] {
        assert!(!is_meant(&other), "{other}");
    }
}

/// A client and what a naive reading of the contract says of it.
#[derive(Debug, Clone)]
struct Person {
    common_name: Vec<u8>,
    username: Vec<u8>,
    host: IpAddr,
    port: u16,
    half_open: bool,
}

fn person() -> impl Strategy<Value = Person> {
    let name = prop::sample::select(vec![
        b"alice".to_vec(),
        b"Alice".to_vec(),
        b"al\xff".to_vec(),
        Vec::new(),
    ]);
    let host = (0u8..3, 0u8..3).prop_map(|(c, d)| IpAddr::from([192, 0, c, d]));
    (name.clone(), name, host, 1u16..3, any::<bool>()).prop_map(
        |(common_name, username, host, port, half_open)| Person {
            common_name,
            username,
            host,
            port,
            half_open,
        },
    )
}

fn wanted() -> impl Strategy<Value = (ClientFilter, Vec<String>)> {
    let names = || {
        prop::collection::btree_set(
            prop::sample::select(vec![b"alice".to_vec(), b"al\xff".to_vec(), b"bob".to_vec()]),
            0..3,
        )
    };
    let address = (
        0u8..3,
        0u8..3,
        prop::sample::select(vec!["", "/24", "/30", ":1"]),
    )
        .prop_map(|(c, d, suffix)| format!("192.0.{c}.{d}{suffix}"));
    (
        names(),
        names(),
        prop::collection::vec(address, 0..3),
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(common_names, usernames, addresses, half_open)| {
            let filter = ClientFilter {
                refs: BTreeSet::new(),
                common_names,
                usernames,
                real_addresses: addresses
                    .iter()
                    .map(|text| AddressPattern::parse_real(text).expect("a pattern"))
                    .collect(),
                virtual_addresses: Vec::new(),
                half_open,
            };
            (filter, addresses)
        })
}

/// Whether an address is meant by a pattern, bit by bit.
fn is_meant(pattern: &str, person: &Person) -> bool {
    let IpAddr::V4(host) = person.host else {
        return false;
    };
    let bits = |text: &str| u32::from(text.parse::<std::net::Ipv4Addr>().expect("an address"));
    if let Some((address, length)) = pattern.split_once('/') {
        let shift = 32 - length.parse::<u32>().expect("a length");
        return bits(address) >> shift == u32::from(host) >> shift;
    }
    match pattern.split_once(':') {
        Some((address, port)) => {
            bits(address) == u32::from(host) && port == person.port.to_string()
        }
        None => bits(pattern) == u32::from(host),
    }
}

proptest! {
    /// Fields are joined by AND, the values of one by OR, and an empty field does not restrict.
    #[test]
    fn filters_agree_with_a_naive_reading(person in person(), (filter, addresses) in wanted()) {
        let eu1 = instance("eu1");
        let real_address = format!("{}:{}", person.host, person.port);
        let client = ClientIdentity {
            common_name: &person.common_name,
            username: &person.username,
            half_open: person.half_open,
            ..identity(&eu1, &real_address, "")
        };
        let mut expected = filter.common_names.is_empty() || filter.common_names.contains(&person.common_name);
        expected &= filter.usernames.is_empty() || filter.usernames.contains(&person.username);
        expected &= addresses.is_empty() || addresses.iter().any(|pattern| is_meant(pattern, &person));
        expected &= filter.half_open.is_none_or(|half_open| half_open == person.half_open);
        prop_assert_eq!(filter.matches(&gateway(), &client), expected);
    }
}

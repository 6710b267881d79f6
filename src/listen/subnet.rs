//! A range of addresses, as of the network that containers are on.

use std::{fmt, net::IpAddr};

/// The addresses that have their first bits in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    base: IpAddr,
    bits: u8,
}

impl Subnet {
    /// Those that have the first `bits` of `base`.
    pub fn new(base: IpAddr, bits: u8) -> Self {
        let most = if base.is_ipv4() { 32 } else { 128 };
        Self { base, bits: bits.min(most) }
    }

    /// Whether this is one of them.
    pub fn has(&self, address: IpAddr) -> bool {
        let same = |own: u128, other: u128, width: u8| {
            (own ^ other).checked_shr(u32::from(width - self.bits)).unwrap_or(0) == 0
        };
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same(own.to_bits().into(), other.to_bits().into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_range_by_its_first_bits() {
        for (base, bits, address, inside) in [
            ("172.20.0.0", 16, "172.20.255.1", true),
            ("172.20.0.0", 16, "::ffff:172.20.0.9", true),
            ("172.20.0.0", 16, "172.21.0.1", false),
            ("172.20.0.0", 16, "127.0.0.1", false),
            ("172.20.0.0", 16, "::1", false),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.1.2.3", 32, "10.1.2.2", false),
            ("0.0.0.0", 0, "9.9.9.9", true),
            ("fd00::", 8, "fd12::1", true),
            ("fd00::", 8, "fe80::1", false),
            ("::", 0, "fe80::1", true),
        ] {
            let subnet = Subnet::new(base.parse().unwrap(), bits);
            assert_eq!(subnet.has(address.parse().unwrap()), inside, "{subnet} {address}");
        }
    }
}

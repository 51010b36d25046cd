//! The daemon's side: how OpenVPN reads a line, and what it writes.

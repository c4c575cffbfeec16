//! Listening on all addresses of the host, of both families.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// As many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// All addresses, IPv4 and IPv6.
pub const EVERYWHERE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Listen on `address`. [`EVERYWHERE`] takes IPv4 as well, and only that where the kernel has no IPv6.
///
/// # Errors
/// The operating system's word.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != EVERYWHERE {
        return TcpListener::bind(address);
    }
    match dual_stack(address.port()) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()))
        }
        listener => Ok(listener?),
    }
}

fn dual_stack(port: u16) -> Result<TcpListener, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET6,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Whatever net.ipv6.bindv6only says.
    sockopt::set_ipv6_v6only(&socket, false)?;
    // Connections of an earlier process that linger must not keep this one from its port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::new(EVERYWHERE, port))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn both_families_reach_what_listens_everywhere() {
        let listener = listen(SocketAddr::new(EVERYWHERE, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
        if address.is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).unwrap();
        } else {
            println!("note: this kernel has no IPv6; only IPv4 is tested here");
        }
    }

    #[test]
    fn one_address_is_one_address() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), Ipv4Addr::LOCALHOST);
    }
}

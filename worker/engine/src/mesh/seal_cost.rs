//! What it costs to seal the frames of an exchange: the same bytes over the same loopback connection as they are, with tags alone, and sealed, in turn.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};

use super::frame::HEADER;
use super::hello::LinkKind;
use super::key::GroupKey;
use super::seal::{HEAD, LinkContext, LinkKeys, TAG};
use crate::step::Era;

/// Exchanges in a row of one kind, so that each kind finds the caches as it left them.
const IN_A_ROW: usize = 64;

/// Medians of one exchange of a frame each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealCost {
    /// Bytes of the payload of each frame.
    pub bytes: usize,
    /// As they are: what nobody may send.
    pub plain: Duration,
    /// With a tag by GMAC: authenticated, and not encrypted.
    pub tagged: Duration,
    /// Sealed by GCM, as ranks do: authenticated and encrypted.
    pub sealed: Duration,
}

/// What is done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    Plain,
    Tagged,
    Sealed,
}

const GUARDS: [Guard; 3] = [Guard::Plain, Guard::Tagged, Guard::Sealed];

/// One end of the connection.
struct End {
    stream: TcpStream,
    keys: LinkKeys,
    tag: LessSafeKey,
    /// Header and payload of what is sent.
    frame: Vec<u8>,
    out: Vec<u8>,
    into: Vec<u8>,
}

/// Measure exchanges of frames with payloads of so many bytes, `rounds` times [`IN_A_ROW`] of each kind.
///
/// # Errors
/// No loopback connection can be had.
pub fn measure(bytes: usize, rounds: usize) -> io::Result<SealCost> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    let (mut near, mut far) = (End::new(near, bytes, 0)?, End::new(far, bytes, 1)?);
    thread::scope(|scope| {
        let peer = scope.spawn(move || far.run(rounds).map(drop));
        let times = near.run(rounds)?;
        peer.join().map_err(|_| io::Error::other("the peer ended"))??;
        let [plain, tagged, sealed] = times.map(median);
        Ok(SealCost {
            bytes,
            plain,
            tagged,
            sealed,
        })
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn unusable<E>(_: E) -> io::Error {
    io::Error::other("a frame cannot be sealed or opened")
}

impl End {
    fn new(stream: TcpStream, bytes: usize, rank: u32) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let context = LinkContext {
            era: Era {
                generation: 1,
                epoch: 1,
            },
            link: LinkKind::Data,
            challenge: [1; 32],
            nonce: [2; 32],
        };
        // Whoever measures sends nothing that is worth hiding.
        let keys = LinkKeys::derive(&GroupKey::from([7; 32]), &context, rank, 1 - rank).map_err(unusable)?;
        let tag = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(unusable)?;
        Ok(Self {
            stream,
            keys,
            tag: LessSafeKey::new(tag),
            frame: vec![1; HEADER + bytes],
            out: Vec::new(),
            into: vec![0; HEAD + bytes + TAG],
        })
    }

    fn run(&mut self, rounds: usize) -> io::Result<[Vec<Duration>; 3]> {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            for (guard, times) in GUARDS.into_iter().zip(&mut times) {
                for _ in 0..IN_A_ROW {
                    let start = Instant::now();
                    self.exchange(guard)?;
                    times.push(start.elapsed());
                }
            }
        }
        Ok(times)
    }

    /// Sends a frame and takes the peer's: header and payload, each with room for a tag.
    fn exchange(&mut self, guard: Guard) -> io::Result<()> {
        self.out.clear();
        match guard {
            Guard::Sealed => self
                .keys
                .sealer
                .seal_frame(&self.frame, &mut self.out)
                .map_err(unusable)?,
            Guard::Plain | Guard::Tagged => {
                let (header, payload) = self.frame.split_at(HEADER);
                for part in [header, payload] {
                    self.out.extend_from_slice(part);
                    self.out.extend_from_slice(&self.tag_of(guard, part)?);
                }
            }
        }
        self.cross()?;
        let (head, body) = self.into.split_at_mut(HEAD);
        for part in [head, body] {
            let (record, tag) = part.split_last_chunk_mut::<TAG>().ok_or_else(|| unusable(()))?;
            match guard {
                Guard::Plain => {}
                Guard::Tagged => {
                    let (nonce, tag) = (nonce(), Tag::from(*tag));
                    let opened =
                        self.tag
                            .open_in_place_separate_tag(nonce, Aad::from(&*record), tag, &mut [], 0..);
                    opened.map(drop).map_err(unusable)?;
                }
                Guard::Sealed => self.keys.opener.open(record, tag).map_err(unusable)?,
            }
        }
        Ok(())
    }

    fn tag_of(&self, guard: Guard, part: &[u8]) -> io::Result<[u8; TAG]> {
        if guard == Guard::Plain {
            return Ok([0; TAG]);
        }
        let tag = self
            .tag
            .seal_in_place_separate_tag(nonce(), Aad::from(part), &mut []);
        tag.map_err(unusable)?.as_ref().try_into().map_err(unusable)
    }

    /// Writes what is to be sent and reads as much, and looks again at once as ranks do that wait for each other.
    fn cross(&mut self) -> io::Result<()> {
        let (mut to_send, mut to_fill) = (self.out.as_slice(), self.into.as_mut_slice());
        while !to_send.is_empty() || !to_fill.is_empty() {
            if !to_send.is_empty()
                && let Some(sent) = moved(self.stream.write(to_send))?
            {
                to_send = to_send.get(sent..).unwrap_or_default();
            }
            if !to_fill.is_empty()
                && let Some(filled) = moved(self.stream.read(to_fill))?
            {
                to_fill = to_fill.get_mut(filled..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// Bytes that moved; nothing when the other end is not so far.
fn moved(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            thread::yield_now();
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Nothing secret is tagged, so that the number of a record does not matter.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_exchange_is_measured() {
        let cost = measure(2304, 3).unwrap();
        assert_eq!(cost.bytes, 2304);
        for time in [cost.plain, cost.tagged, cost.sealed] {
            assert!(time > Duration::ZERO && time < Duration::from_secs(1), "{cost:?}");
        }
    }
}

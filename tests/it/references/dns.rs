//! A name server on loopback, over UDP and TCP, whose answers the test chooses.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::harness::loopback::{Loopback, Serving};

/// The largest datagram that no network fragments; larger answers go over TCP.
const DATAGRAM_BYTES_MAX: usize = 1232;

/// The records of a name.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Addresses with a TTL of 0. Each question gets those of its type.
    Addresses(Vec<IpAddr>),
    /// A chain of CNAMEs. The addresses, if any, belong to the last name.
    Alias(Vec<&'static str>, Vec<IpAddr>),
    NoSuchName,
    Silence,
}

/// Shorthand for [`Known::Addresses`].
pub(super) fn known(addresses: &[&str]) -> Known {
    Known::Addresses(addresses.iter().map(|text| text.parse().unwrap()).collect())
}

/// The running name server.
pub(super) struct NameServer {
    pub(super) address: SocketAddr,
    zone: Arc<Zone>,
    _serving: Serving,
}

/// The records of a name when it is queried for the n-th time, from 0.
type Knows = dyn Fn(&str, usize) -> Known + Send + Sync;

struct Zone {
    known: Box<Knows>,
    asked: Mutex<HashMap<(String, RecordType), usize>>,
}

impl NameServer {
    pub(super) async fn start(
        known: impl Fn(&str, usize) -> Known + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same port may be in use there.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let zone = Arc::new(Zone {
            known: Box::new(known),
            asked: Mutex::default(),
        });
        let address = udp.local_addr().unwrap();
        let streamed = Arc::clone(&zone);
        let mut serving =
            Loopback(tcp).accept(move |stream| serve_stream(stream, Arc::clone(&streamed)));
        serving.spawn(serve_udp(udp, Arc::clone(&zone)));
        Self {
            address,
            zone,
            _serving: serving,
        }
    }

    /// How often the IPv4 and the IPv6 addresses of a name were queried.
    pub(super) fn asked(&self, name: &str) -> [usize; 2] {
        let asked = self.zone.asked.lock().unwrap();
        [RecordType::A, RecordType::AAAA]
            .map(|kind| asked.get(&(name.to_owned(), kind)).copied().unwrap_or(0))
    }
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let Some(mut answer) = zone.answer(&buffer[..length], true) else {
            continue;
        };
        if answer.to_vec().unwrap().len() > DATAGRAM_BYTES_MAX {
            answer.answers.clear();
            answer.metadata.truncation = true;
        }
        let bytes = answer.to_vec().unwrap();
        socket.send_to(&bytes, from).await.unwrap();
    }
}

async fn serve_stream(mut stream: TcpStream, zone: Arc<Zone>) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await?;
        // It was counted when it arrived as a datagram.
        if let Some(answer) = zone.answer(&question, false) {
            let bytes = answer.to_vec().unwrap();
            let length = u16::try_from(bytes.len()).unwrap();
            stream
                .write_all(&[&length.to_be_bytes()[..], &bytes].concat())
                .await?;
        }
    }
}

impl Zone {
    fn answer(&self, question: &[u8], first_time: bool) -> Option<Message> {
        let question = Message::from_vec(question).unwrap();
        let query = question.queries.first().unwrap().clone();
        let (name, kind) = (query.name.to_ascii().to_lowercase(), query.query_type);
        let name = name.trim_end_matches('.').to_owned();
        let nth = {
            let mut asked = self.asked.lock().unwrap();
            let count = asked.entry((name.clone(), kind)).or_default();
            *count += usize::from(first_time);
            *count - 1
        };
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        let (chain, addresses) = match (self.known)(&name, nth) {
            Known::Addresses(addresses) => (vec![], addresses),
            Known::Alias(chain, addresses) => (chain, addresses),
            Known::NoSuchName => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                return Some(answer);
            }
            Known::Silence => return None,
        };
        let mut owner = query.name;
        for next in chain {
            let next = Name::from_ascii(format!("{next}.")).unwrap();
            let data = RData::CNAME(CNAME(next.clone()));
            answer.add_answer(Record::from_rdata(owner, 0, data));
            owner = next;
        }
        for address in addresses {
            let data = match address {
                IpAddr::V4(address) => RData::A(address.into()),
                IpAddr::V6(address) => RData::AAAA(address.into()),
            };
            if data.record_type() == kind {
                answer.add_answer(Record::from_rdata(owner.clone(), 0, data));
            }
        }
        Some(answer)
    }
}

//! Heads of requests and answers, as text and back. They are those of HTTP/1.1, so that
//! one parser serves both ways between peers; what ends a body is said by frames, so
//! `Transfer-Encoding` and what else concerns one connection has no place in them.

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
    request, response,
};

/// A client's 100 headers, and those the front adds.
const MAX_HEADERS: usize = 128;
/// Headers that would say another end of a body than frames do.
const NEVER: [HeaderName; 3] = [header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE];

/// A head that is not understood, or says what it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a head that is none")]
pub(super) struct NoHead;

/// Writes the head of a request in origin form.
pub(super) fn put_request(out: &mut BytesMut, head: &request::Parts) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    put_headers(out, &head.headers);
    out.extend_from_slice(b"\r\n");
}

/// Writes the head of an answer. The application's own reason phrase goes with it.
pub(super) fn put_response(out: &mut BytesMut, head: &response::Parts) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    match head.extensions.get::<hyper::ext::ReasonPhrase>() {
        Some(reason) => out.extend_from_slice(reason.as_bytes()),
        None => out.extend_from_slice(head.status.canonical_reason().unwrap_or("-").as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
    put_headers(out, &head.headers);
    out.extend_from_slice(b"\r\n");
}

/// Writes header lines, without those that concern one connection.
pub(super) fn put_headers(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        if !NEVER.contains(name) {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Reads the head of a request.
///
/// # Errors
/// If it is none, is not in origin form, or has two lengths.
pub(super) fn request(text: &Bytes) -> Result<Request<()>, NoHead> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut lines);
    match parsed.parse(text) {
        Ok(httparse::Status::Complete(length)) if length == text.len() => {}
        _ => return Err(NoHead),
    }
    let (Some(method), Some(target), Some(1)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(NoHead);
    };
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_| NoHead)?;
    let target = text.slice_ref(target.as_bytes());
    *request.uri_mut() = Uri::from_maybe_shared(target).map_err(|_| NoHead)?;
    if request.uri().authority().is_some() || !request.uri().path().starts_with('/') {
        return Err(NoHead);
    }
    *request.headers_mut() = map(text, parsed.headers)?;
    Ok(request)
}

/// Reads the head of an answer.
///
/// # Errors
/// If it is none, is only provisional, or has two lengths.
pub(super) fn response(text: &Bytes) -> Result<Response<()>, NoHead> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut lines);
    match parsed.parse(text) {
        Ok(httparse::Status::Complete(length)) if length == text.len() => {}
        _ => return Err(NoHead),
    }
    let (Some(status), Some(1)) = (parsed.code, parsed.version) else { return Err(NoHead) };
    let status = StatusCode::from_u16(status).map_err(|_| NoHead)?;
    if status.is_informational() {
        return Err(NoHead);
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Some(reason) = parsed.reason
        && Some(reason) != status.canonical_reason()
        && let Ok(reason) = hyper::ext::ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
    }
    *response.headers_mut() = map(text, parsed.headers)?;
    Ok(response)
}

/// Reads trailers.
///
/// # Errors
/// If they are none, or one of them says how long the body is.
pub(super) fn trailers(text: &Bytes) -> Result<HeaderMap, NoHead> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    match httparse::parse_headers(text, &mut lines) {
        Ok(httparse::Status::Complete((length, headers))) if length == text.len() => {
            let trailers = map(text, headers)?;
            if trailers.contains_key(header::CONTENT_LENGTH) { Err(NoHead) } else { Ok(trailers) }
        }
        _ => Err(NoHead),
    }
}

/// How long the body is, if its head says so.
///
/// # Errors
/// If it says so twice, or what is no length.
pub(super) fn length(headers: &HeaderMap) -> Result<Option<u64>, NoHead> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().map_err(|_| NoHead)?;
    // Digits alone: a sign would be read as a number too.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || values.next().is_some() {
        return Err(NoHead);
    }
    text.parse().map(Some).map_err(|_| NoHead)
}

fn map(text: &Bytes, lines: &[httparse::Header<'_>]) -> Result<HeaderMap, NoHead> {
    let mut headers = HeaderMap::with_capacity(lines.len() + 4);
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| NoHead)?;
        if NEVER.contains(&name) {
            return Err(NoHead);
        }
        // An empty value is nowhere in the text.
        let value = match line.value {
            [] => HeaderValue::from_static(""),
            value => HeaderValue::from_maybe_shared(text.slice_ref(value)).map_err(|_| NoHead)?,
        };
        headers.append(name, value);
    }
    length(&headers)?;
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut BytesMut)) -> Bytes {
        let mut out = BytesMut::new();
        write(&mut out);
        out.freeze()
    }

    #[test]
    fn a_request_and_an_answer_come_out_as_they_went_in() {
        let asked = Request::post("/%41+;//b?c=%2F&")
            .header("a", "1")
            .header("a", "")
            .header("b", "\u{e9}");
        let (asked, ()) = asked.body(()).unwrap().into_parts();
        let read = request(&text(|out| put_request(out, &asked))).unwrap();
        assert_eq!((read.method(), read.uri()), (&asked.method, &asked.uri));
        assert_eq!(read.headers(), &asked.headers);
        let reason = hyper::ext::ReasonPhrase::from_static(b"Gone Fishing");
        let told = Response::builder().status(404).header("x", "y").extension(reason.clone());
        let (told, ()) = told.body(()).unwrap().into_parts();
        let read = response(&text(|out| put_response(out, &told))).unwrap();
        assert_eq!((read.status(), read.headers()), (told.status, &told.headers));
        assert_eq!(read.extensions().get(), Some(&reason));
    }

    #[test]
    fn a_head_that_two_could_read_differently_is_none() {
        for lines in [
            "transfer-encoding: chunked\r\n",
            "connection: close\r\n",
            "upgrade: x\r\n",
            "content-length: 1\r\ncontent-length: 2\r\n",
            "content-length: 1\r\ncontent-length: 1\r\n",
            "content-length: +5\r\n",
            "content-length: \r\n",
            "content-length: 1, 1\r\n",
            "content-length: 99999999999999999999\r\n",
            "a b: c\r\n",
            "a: b\r\n c\r\n",
            "a: b\r\nc\r\n",
        ] {
            let asked = Bytes::from(format!("GET /x HTTP/1.1\r\n{lines}\r\n"));
            assert_eq!(request(&asked).err(), Some(NoHead), "{lines:?}");
            let told = Bytes::from(format!("HTTP/1.1 200 OK\r\n{lines}\r\n"));
            assert_eq!(response(&told).err(), Some(NoHead), "{lines:?}");
        }
        for asked in [
            "GET /x HTTP/1.1\r\n\r\nrest",
            "GET /x HTTP/1.1\r\n",
            "GET /x HTTP/1.0\r\n\r\n",
            "GET http://h/x HTTP/1.1\r\n\r\n",
            "CONNECT h:1 HTTP/1.1\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\n\r\n",
            "",
        ] {
            assert_eq!(request(&Bytes::from(asked)).err(), Some(NoHead), "{asked:?}");
        }
        for told in ["HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP/1.1 1000 x\r\n\r\n", "x\r\n"]
        {
            assert_eq!(response(&Bytes::from(told)).err(), Some(NoHead), "{told:?}");
        }
        assert_eq!(trailers(&Bytes::from("content-length: 1\r\n\r\n")), Err(NoHead));
        assert_eq!(trailers(&Bytes::from("a: 1\r\n\r\n")).unwrap()["a"], "1");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~\\r\\n]{0,80}") {
            let text = Bytes::from(text);
            let _ = (request(&text).is_ok(), response(&text).is_ok(), trailers(&text).is_ok());
        }
    }
}

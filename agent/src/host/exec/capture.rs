//! Splits what a program prints into lines for the caller, and keeps the end of it.

use super::{Captured, LineSink, MAX_LINE_BYTES, Stream};

/// Both output streams of one program.
pub(super) struct Capture {
    stdout: Channel,
    stderr: Channel,
    lines: Option<LineSink>,
}

struct Channel {
    tail: Vec<u8>,
    omitted: u64,
    limit: usize,
    line: Vec<u8>,
}

// === impl Capture ===

impl Capture {
    pub(super) fn new(limit: usize, lines: Option<LineSink>) -> Self {
        Self { stdout: Channel::new(limit), stderr: Channel::new(limit), lines }
    }

    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let Self { stdout, stderr, lines } = self;
        let channel = match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        channel.keep(bytes);
        if let Some(sink) = lines {
            channel.split(bytes, &mut |line| sink(stream, line));
        }
    }

    /// Ends both streams: a last line without an end is a line too.
    pub(super) fn finish(mut self) -> (Captured, Captured) {
        if let Some(sink) = &mut self.lines {
            self.stdout.flush(&mut |line| sink(Stream::Stdout, line));
            self.stderr.flush(&mut |line| sink(Stream::Stderr, line));
        }
        (self.stdout.captured(), self.stderr.captured())
    }
}

// === impl Channel ===

impl Channel {
    fn new(limit: usize) -> Self {
        Self { tail: Vec::new(), omitted: 0, limit, line: Vec::new() }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        // Cut only when it has doubled, so that keeping a tail costs a constant amount per byte.
        if self.tail.len() > self.limit.saturating_mul(2) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let excess = self.tail.len().saturating_sub(self.limit);
        self.tail.drain(..excess);
        self.omitted = self.omitted.saturating_add(excess as u64);
    }

    fn split(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                self.flush(sink);
            } else if self.line.len() < MAX_LINE_BYTES {
                self.line.push(byte);
            }
        }
    }

    fn flush(&mut self, sink: &mut dyn FnMut(&str)) {
        if !self.line.is_empty() {
            sink(&String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }

    fn captured(mut self) -> Captured {
        self.cut();
        Captured { bytes: self.tail, omitted_bytes: self.omitted }
    }
}

//! An [`Output`] into memory, for tests.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Format, Output};

impl Output {
    /// Two buffers, for tests; `terminal` as if standard error were one.
    pub(crate) fn captured(format: Format, terminal: bool) -> (Self, Captured) {
        let captured = Captured::default();
        let output = Self {
            out: Box::new(captured.out.clone()),
            err: Box::new(captured.err.clone()),
            format,
            err_is_terminal: terminal,
            answers: None,
            terminal: None,
            if_interrupted: Vec::new(),
        };
        (output, captured)
    }

    /// With somebody who types this.
    pub(crate) fn answering(mut self, typed: &'static str) -> Self {
        self.answers = Some(Box::new(typed.as_bytes()));
        self
    }

    /// As if standard output were a terminal of this size.
    pub(crate) fn on_terminal(mut self, columns: usize, rows: usize) -> Self {
        self.terminal = Some((columns, rows));
        self
    }
}

/// What was printed to a captured [`Output`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Captured {
    out: Buffer,
    err: Buffer,
}

impl Captured {
    /// What went to standard output.
    pub(crate) fn out(&self) -> String {
        self.out.text()
    }

    /// What went to standard error.
    pub(crate) fn err(&self) -> String {
        self.err.text()
    }
}

#[derive(Clone, Debug, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

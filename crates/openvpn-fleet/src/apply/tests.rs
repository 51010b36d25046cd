//! Transcripts of real daemons, and the rules of generations one by one.

mod generations;
mod transcripts;
mod words;

//! Transcripts of real daemons, and the rules of generations one by one.

mod generations;
mod leavings;
mod transcripts;
mod words;

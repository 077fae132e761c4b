//! The engine `sim`: what it promises, and that its faults are what they are meant to be.

mod chaos;
mod harness;
mod links;
mod reads;
mod transfers;

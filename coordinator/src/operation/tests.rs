mod engine;
mod toy;
mod walk;

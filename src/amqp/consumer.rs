//! Consuming: how `tap` reads messages back.

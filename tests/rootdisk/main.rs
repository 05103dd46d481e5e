//! Root disks as a machine sees them: built from layers through the public interface, checked by
//! `fsck.erofs`, read back by an independent reader, and compared with a model and with umoci.

mod disk;
mod formats;
mod hostile;
mod model;
mod random;
mod reference;
mod rules;
mod tarball;

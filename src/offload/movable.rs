//! What the layer asks of the service inside, said so that the compiler's message teaches.
//!
//! Without `do_not_recommend` rustc would go on to the bound of the blanket impl, report `Unpin`,
//! and advise `Box::pin`, which is not where the user can mend it. `Answers` is what rustc names for
//! `service.call(..)`, where it looks no further than the bounds of one impl.

use std::future::Future;

use tower_service::Service;

use super::OffloadService;

/// A future that can be moved after it was polled: every future that is [`Unpin`], as axum's and
/// all boxed ones are.
///
/// The layer asks for it because a request that is taken off its connection moves into a task. For
/// other futures there is [`OffloadLayer::boxed`](super::OffloadLayer::boxed).
#[diagnostic::on_unimplemented(
    message = "the layer must be `.boxed()`: `{Self}` is not `Unpin`",
    label = "the future of the service inside cannot be moved once it has been polled",
    note = "`offload.layer(policy).boxed()` takes any future, for one allocation"
)]
pub trait Movable: Future + Unpin {}

#[diagnostic::do_not_recommend]
impl<F: Future + Unpin> Movable for F {}

/// Services that an [`OffloadService`] can be around. Implemented where it is one; nothing to use.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `Service`: is the future inside not `Unpin`?",
    label = "if so, the layer must be `.boxed()`",
    note = "`offload.layer(policy).boxed()` takes any future, for one allocation"
)]
pub trait Answers<R> {}

impl<S, R> Answers<R> for OffloadService<S>
where
    S: Service<R>,
    S::Future: Movable,
{
}

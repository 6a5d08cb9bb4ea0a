//! Tasks in the database: the queue, and what is read of tasks. `billing::ledger` inserts and ends them.

mod lookup;
mod months;
mod notify;
mod overdue;
mod queue;
mod row;
mod sweep;
mod waiters;
mod waiting;

pub use lookup::{by_file_id, ended_among, list, list_ended, summaries};
pub use months::add_months;
pub use notify::{ASKED_CHANNEL, ENDED_CHANNEL, QUEUED_CHANNEL, REPLIED_CHANNEL};
pub use overdue::{Overdue, OverdueTask, overdue};
pub use queue::{
    claim, is_any_lost, is_any_waiting, lock_queue, note_job, release_claims, renew, requeue,
    requeue_lost, running,
};
pub use sweep::{Unswept, mark_swept, unswept};
pub use waiters::remove_waiter;
pub use waiting::{Demand, Line, Waiting, count_queued, queued_classes, step_aside, waiting};

/// The fence of a task that is inserted as already claimed.
pub const FIRST_FENCE: i64 = 1;

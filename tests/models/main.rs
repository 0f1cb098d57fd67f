//! Explicit-state models of the safety protocol: `holdfast_common::protocol`, the code that runs, in a world that loses, repeats and
//! reorders messages, restarts agents and coordinator without their memory, and stalls an agent between any two of its
//! actions.
//!
//! `safe`: with every rule no reachable state has two open gates or lacks an acknowledged entry, and each has a way back to
//! a healthy cluster; `switched`: so where the primary is changed by plan. `left_out`: with any rule left out a counter-example is
//! found. The rules are left out here, by tampering with what the code is told, remembers and does ([`rules`]): the code itself
//! has no switch for it. One is put in here, as the code does not have it yet: that a confirmation bears where the log ends.
//!
//! | module | what |
//! | --- | --- |
//! | [`world`] | a state: nodes with kernel and engine, the coordinator, packets under way |
//! | [`model`] | the bounds, the actions, what must always hold |
//! | [`agents`], [`engines`], [`network`], [`coordinator`] | what each of them can do |
//! | [`switchover`] | what they do to change the primary by plan |
//! | [`profiles`] | what they do to go by other times |
//! | [`rules`] | the rules that can be left out, and how |
//! | [`explore`] | the checker's verdicts; the way back from every state |

#[cfg(test)]
mod agents;
#[cfg(test)]
mod coordinator;
#[cfg(test)]
mod engines;
#[cfg(test)]
mod explore;
#[cfg(test)]
mod left_out;
#[cfg(test)]
mod model;
#[cfg(test)]
mod network;
#[cfg(test)]
mod profiles;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod safe;
#[cfg(test)]
mod switched;
#[cfg(test)]
mod switchover;
#[cfg(test)]
mod world;

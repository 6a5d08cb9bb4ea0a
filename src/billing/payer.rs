//! Decides whether to grant a hold. The accounts stay locked meanwhile, so that requests that share
//! a transaction are granted one by one, as if each had its own.

use std::collections::HashMap;

use crate::{
    ids::{AccountId, KeyId},
    money::Cny,
};

/// An account as read under its lock, updated by the holds granted since.
#[derive(Clone, Debug)]
pub(super) struct Payer {
    /// Everything paid in minus everything captured.
    pub balance: Cny,
    /// What open tasks hold.
    pub held: Cny,
    /// What is left of the month's quota, with holds counted as spent. `None`: no quota.
    pub quota_left: Option<Cny>,
    /// What the account may spend in a month; `None`: no quota.
    pub monthly_quota: Option<Cny>,
}

/// The locked accounts of some keys.
#[derive(Debug, Default)]
pub struct Payers {
    /// The accounts, as changed by `holds`.
    pub(super) accounts: HashMap<AccountId, Payer>,
    /// The paying account of each usable key.
    pub(super) keys: HashMap<KeyId, AccountId>,
}

/// Why a hold was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key was revoked or has expired, or its account is disabled.
    #[error("the API key is no longer valid")]
    Key,
    /// The price exceeds the balance minus all holds.
    #[error("balance too low: this costs {cost} CNY and {available} CNY is available")]
    Balance {
        /// The price of the request.
        cost: Cny,
        /// The balance minus all holds.
        available: Cny,
    },
    /// The price exceeds what is left of the month's quota.
    #[error(
        "monthly quota used up: this costs {cost} CNY and {left} CNY of {quota} CNY is left this month"
    )]
    Quota {
        /// The price of the request.
        cost: Cny,
        /// What is left this month.
        left: Cny,
        /// The quota of a month.
        quota: Cny,
    },
}

impl Payers {
    /// Holds `amount` for a task of this key, or returns why not.
    pub fn hold(&mut self, key_id: KeyId, amount: Cny) -> Result<(), Refusal> {
        let account_id = *self.keys.get(&key_id).ok_or(Refusal::Key)?;
        let payer = self.accounts.get_mut(&account_id).ok_or(Refusal::Key)?;
        let available = payer.balance - payer.held;
        if amount > available {
            return Err(Refusal::Balance {
                cost: amount,
                available,
            });
        }
        if let (Some(left), Some(quota)) = (payer.quota_left, payer.monthly_quota) {
            if amount > left {
                return Err(Refusal::Quota {
                    cost: amount,
                    left: left.max(Cny::ZERO),
                    quota,
                });
            }
            payer.quota_left = Some(left - amount);
        }
        payer.held = payer.held + amount;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::row_id;

    fn payers(balance: i64, quota: Option<i64>) -> (Payers, KeyId) {
        let (account, key) = (row_id(), row_id());
        let mut payers = Payers::default();
        payers.keys.insert(key, account);
        let quota = quota.map(Cny::from_micros);
        let payer = Payer {
            balance: Cny::from_micros(balance),
            held: Cny::ZERO,
            quota_left: quota,
            monthly_quota: quota,
        };
        payers.accounts.insert(account, payer);
        (payers, key)
    }

    #[test]
    fn the_balance_is_granted_to_the_last_micro_and_no_further() {
        let (mut payers, key) = payers(1_000_000, None);
        let granted = (0..200)
            .filter(|_| payers.hold(key, Cny::from_micros(200_000)).is_ok())
            .count();
        assert_eq!(granted, 5);
        assert_eq!(
            payers
                .hold(key, Cny::from_micros(1))
                .unwrap_err()
                .to_string(),
            "balance too low: this costs 0.000001 CNY and 0.00 CNY is available"
        );
    }

    #[test]
    fn a_refused_hold_uses_up_nothing() {
        let (mut payers, key) = payers(300_000, None);
        assert!(payers.hold(key, Cny::from_micros(400_000)).is_err());
        assert!(payers.hold(key, Cny::from_micros(300_000)).is_ok());
    }

    #[test]
    fn the_quota_binds_before_the_balance() {
        let (mut payers, key) = payers(1_000_000, Some(500_000));
        assert!(payers.hold(key, Cny::from_micros(400_000)).is_ok());
        assert_eq!(
            payers
                .hold(key, Cny::from_micros(200_000))
                .unwrap_err()
                .to_string(),
            "monthly quota used up: this costs 0.20 CNY and 0.10 CNY of 0.50 CNY is left this month"
        );
    }

    #[test]
    fn an_unknown_key_pays_nothing() {
        let (mut payers, _) = payers(1_000_000, None);
        assert_eq!(payers.hold(row_id(), Cny::ZERO), Err(Refusal::Key));
    }
}

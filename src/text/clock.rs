//! What day it is, as templates ask for it: strftime over a time that is given.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in UTC, by the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub year: i64,
    /// From 1.
    pub month: u32,
    /// From 1.
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const DAY_S: i64 = 24 * 60 * 60;

impl Moment {
    /// The present, in UTC: what a board thinks of time zones is nothing that a model's makers know.
    pub fn now() -> Moment {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment::from_unix(i64::try_from(since.as_secs()).unwrap_or(0))
    }

    /// So many seconds after 1970 began.
    pub fn from_unix(seconds: i64) -> Moment {
        let (days, second) = (seconds.div_euclid(DAY_S), seconds.rem_euclid(DAY_S));
        // Years that begin in March end with the day that only some of them have.
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let small = |number: i64| u32::try_from(number).unwrap_or(0);
        Moment {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: small(month),
            day: small(day_of_year - (153 * from_march + 2) / 5 + 1),
            hour: small(second / 3600),
            minute: small(second / 60 % 60),
            second: small(second % 60),
        }
    }

    /// Days since 1970 began.
    fn days(&self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let from_march = i64::from((self.month + 9) % 12);
        let day_of_year = (153 * from_march + 2) / 5 + i64::from(self.day) - 1;
        year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
            - 719_468
    }

    fn day_of_year(&self) -> i64 {
        self.days() - Moment { month: 1, day: 1, ..*self }.days() + 1
    }

    /// strftime; `%-d` and the like leave out the zeros in front.
    ///
    /// # Errors
    /// The directive that is not known.
    pub fn format(&self, format: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let mut directive = rest.next();
            let is_bare = directive == Some('-');
            if is_bare {
                directive = rest.next();
            }
            let number = |number: i64, width: usize| {
                let width = if is_bare { 0 } else { width };
                format!("{number:0width$}")
            };
            let hour_12 = i64::from((self.hour + 11) % 12 + 1);
            let month = MONTHS[(self.month as usize + 11) % 12];
            let weekday = (self.days() + 4).rem_euclid(7);
            let day = DAYS[usize::try_from(weekday).unwrap_or(0)];
            let part = match directive {
                Some('Y') => number(self.year, 0),
                Some('y') => number(self.year.rem_euclid(100), 2),
                Some('m') => number(i64::from(self.month), 2),
                Some('d') => number(i64::from(self.day), 2),
                Some('e') => format!("{:2}", self.day),
                Some('j') => number(self.day_of_year(), 3),
                Some('H') => number(i64::from(self.hour), 2),
                Some('I') => number(hour_12, 2),
                Some('M') => number(i64::from(self.minute), 2),
                Some('S') => number(i64::from(self.second), 2),
                Some('p') => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
                Some('B') => month.to_owned(),
                Some('b' | 'h') => month[..3].to_owned(),
                Some('A') => day.to_owned(),
                Some('a') => day[..3].to_owned(),
                Some('w') => number(weekday, 0),
                Some('F') => self.format("%Y-%m-%d")?,
                Some('T') => self.format("%H:%M:%S")?,
                Some('Z') => "UTC".to_owned(),
                Some('z') => "+0000".to_owned(),
                Some('%') => "%".to_owned(),
                other => {
                    let mut what = "strftime_now does not know %".to_owned();
                    what.extend(other);
                    return Err(what);
                }
            };
            // Writing to a string does not fail.
            let _ = text.write_str(&part);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moments_are_days_of_the_calendar() {
        let check = |seconds: i64, format: &str, text: &str| {
            assert_eq!(Moment::from_unix(seconds).format(format).unwrap(), text);
        };
        check(0, "%A %F %T", "Thursday 1970-01-01 00:00:00");
        check(951_782_399, "%Y-%m-%d %H:%M:%S %j", "2000-02-28 23:59:59 059");
        check(951_868_800, "%a %-d %b %Y %p", "Wed 1 Mar 2000 AM");
        check(1_770_091_506, "%e %I %y %B %%", " 3 04 26 February %");
        assert!(Moment::from_unix(0).format("%Q").is_err());
        assert!(Moment::from_unix(0).format("%").is_err());
    }

    proptest! {
        #[test]
        fn days_are_found_again(seconds in -60_000_000_000_i64..200_000_000_000) {
            let moment = Moment::from_unix(seconds);
            prop_assert_eq!(moment.days(), seconds.div_euclid(DAY_S));
        }
    }
}

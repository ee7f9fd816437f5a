//! Documents to embed: the same on every machine, and as unequal as those of real collections.
//!
//! Lengths of documents in collections are near a log-normal distribution, many short ones and a
//! long tail; here its median is 40 words and its sigma 0.8, held to 4 to 400 words, so that the mean
//! is about 55 words, as of web passages. Words are common English ones, by Zipf's law.

use crate::synth::random::split_mix;

/// Words of a document in the middle of all.
const MEDIAN_WORDS: f64 = 40.0;

/// Spread of the logarithm of lengths.
const SIGMA: f64 = 0.8;

/// Fewest and most words of a document.
const LIMITS: (f64, f64) = (4.0, 400.0);

/// Words of a sentence, by turns.
const SENTENCES: [usize; 5] = [9, 17, 6, 23, 12];

/// The most frequent first.
const WORDS: &str = "the of and to in a is that for it was on as with are at by this from have or an \
    be not which one had you we their has all were when there can more if no out so said what up \
    its about into than them only other time new some could these two may then first any my now \
    people over after work year also many before must through back where much way well down should \
    because long each just state those own world great water house place right small found still \
    between name home country school never last same another thought city tree cross farm hard \
    start might story saw far sea draw left late run while press close night real life few north \
    book carry took science eat room friend began idea fish mountain stop once base hear horse cut \
    sure watch color face wood main open together children begin walk ease paper group always music \
    both mark letter until mile river car feet care second enough plain girl usual young ready \
    above ever red list though feel talk bird soon body dog family direct pose leave song measure \
    door product black short class wind question happen complete ship area half rock order fire \
    south problem piece told knew pass since top whole king space heard best hour better true \
    during hundred five remember step early hold west ground interest reach fast verb sing listen \
    six table travel less morning ten simple several vowel toward war lay against pattern slow \
    center love person money serve appear road map rain rule govern pull cold notice voice unit \
    power town fine certain fly fall lead cry dark machine note wait plan figure star box noun \
    field rest correct able pound done beauty drive stood contain front teach week final gave \
    green quick develop ocean warm free minute strong special mind behind clear tail produce fact \
    street inch multiply nothing course stay wheel full force blue object decide surface deep moon \
    island foot system busy test record boat common gold possible plane stead dry wonder laugh \
    thousand ago ran check game shape equate miss brought heat snow tire bring yes distant fill \
    east paint language among";

/// The first so many documents.
pub fn documents(count: usize, seed: u64) -> Vec<String> {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    // By Zipf's law: how often a word comes, and all before it.
    let mut sums = Vec::with_capacity(words.len());
    words.iter().enumerate().fold(0.0, |sum, (rank, _)| {
        sums.push(sum + 1.0 / (rank + 2) as f64);
        sums[rank]
    });
    let all = sums.last().copied().unwrap_or(0.0);
    let mut state = seed;
    let document = |_| {
        let mut text = String::new();
        let (length, mut place, mut sentence) = (words_of_one(&mut state), 0, 0);
        for index in 0..length {
            let at = part(&mut state) * all;
            let word = words[sums.partition_point(|sum| *sum < at).min(words.len() - 1)];
            if place == 0 {
                let (first, rest) = word.split_at(1);
                text.push_str(&first.to_ascii_uppercase());
                text.push_str(rest);
            } else {
                text.push_str(word);
            }
            place += 1;
            let is_end = place == SENTENCES[sentence % SENTENCES.len()] || index + 1 == length;
            if is_end {
                (place, sentence) = (0, sentence + 1);
                text.push('.');
            }
            if index + 1 < length {
                text.push(' ');
            }
        }
        text
    };
    (0..count).map(document).collect()
}

/// Between 0 and 1.
fn part(state: &mut u64) -> f64 {
    (split_mix(state) >> 11) as f64 / (1u64 << 53) as f64
}

/// The sum of twelve even numbers is near a normal one, and needs no logarithm, which machines round
/// differently.
fn words_of_one(state: &mut u64) -> usize {
    let normal: f64 = (0..12).map(|_| part(state)).sum::<f64>() - 6.0;
    let words = MEDIAN_WORDS * (SIGMA * normal).exp();
    words.clamp(LIMITS.0, LIMITS.1).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_the_same_and_of_mixed_length() {
        let all = documents(2000, 1);
        assert_eq!(documents(10, 1), all[..10]);
        assert_ne!(documents(10, 2), all[..10]);
        let mut lengths: Vec<usize> =
            all.iter().map(|text| text.split_whitespace().count()).collect();
        lengths.sort_unstable();
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        assert!((36..44).contains(&lengths[1000]), "the median is {}", lengths[1000]);
        assert!((50.0..60.0).contains(&mean), "the mean is {mean}");
        assert!(lengths[0] >= 4 && lengths[0] < 8 && lengths[1999] > 250 && lengths[1999] <= 400);
        assert!(all.iter().all(|text| text.is_ascii() && text.ends_with('.')));
    }
}

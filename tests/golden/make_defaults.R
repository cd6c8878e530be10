# What flexmix gives with its own defaults, for the page on coming from elsewhere: Rscript tests/golden/make_defaults.R, from the root of a clone.
# The data are those of the case pbc_three of make_flexmix.R, which has flexmix's maximum with a maximum-likelihood driver.
suppressPackageStartupMessages({library(flexmix); library(jsonlite)})

pbc <- read.csv("mixmoe/data/pbcseq.csv")
pbc$year <- pbc$day / 365.25

single <- sapply(1:20, function(seed) {
  set.seed(seed)
  fit <- flexmix(log(bili) ~ year | id, data = pbc, k = 3, concomitant = FLXPmultinom(~ age))
  c(experts = fit@k, loglik = as.numeric(logLik(fit)))
})

versions <- list(R = R.version.string, flexmix = as.character(packageVersion("flexmix")))
write_json(list(versions = versions, experts = unname(single["experts", ]), logliks = unname(single["loglik", ])),
           "tests/golden/defaults.json", digits = NA, auto_unbox = TRUE, pretty = TRUE)

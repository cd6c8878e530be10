# Counts with certain zeros by glmmTMB: Rscript tests/golden/make_zero_inflated.R, from the root of a clone.
suppressPackageStartupMessages({library(glmmTMB); library(jsonlite)})

sim <- read.csv("tests/golden/sim_zeros.csv")
sim$ones <- 1

# name, family, formula of mixmoe, arguments of mixmoe, formula and family of the peer, and column of weights
models <- list(
  list("count_intercept", "zip", "count ~ time + x | re: (1 | id)", list(offset = "log_exposure"),
       count ~ time + x + offset(log_exposure) + (1 | id), poisson(), "ones"),
  list("count_slope", "zip", "count ~ time + x | re: (1 + time | id)", list(offset = "log_exposure"),
       count ~ time + x + offset(log_exposure) + (1 + time | id), poisson(), "ones"),
  list("count_weighted", "zip", "count ~ time + x | re: (1 | id)", list(offset = "log_exposure", weights = "weight"),
       count ~ time + x + offset(log_exposure) + (1 | id), poisson(), "weight"),
  list("count_rows", "zip", "count ~ time + x | re: (0 | id)", list(), count ~ time + x, poisson(), "ones"),
  list("clumped_intercept", "zinb", "clumped ~ time + x | re: (1 | id)", list(offset = "log_exposure"),
       clumped ~ time + x + offset(log_exposure) + (1 | id), nbinom2(), "ones"),
  list("clumped_double_bar", "zinb", "clumped ~ time + x | re: (1 + time || id)", list(offset = "log_exposure"),
       clumped ~ time + x + offset(log_exposure) + (1 + time || id), nbinom2(), "ones")
)

with_tmb <- function(case) {
  control <- glmmTMBControl(optCtrl = list(rel.tol = 1e-14, iter.max = 2000, eval.max = 4000))
  sim$w <- sim[[case[[7]]]]
  fit <- glmmTMB(case[[5]], data = sim, family = case[[6]], ziformula = ~1, weights = w, control = control)
  blocks <- VarCorr(fit)$cond
  D <- if (is.null(blocks)) NULL else as.matrix(Matrix::bdiag(lapply(blocks, function(v) matrix(as.numeric(v), nrow(v)))))
  list(name = case[[1]], family = case[[2]], formula = case[[3]], arguments = case[[4]],
       peer_formula = paste(deparse(case[[5]], width.cutoff = 500), collapse = ""), loglik = as.numeric(logLik(fit)),
       beta = unname(fixef(fit)$cond), se = unname(sqrt(diag(vcov(fit)$cond))), D = D, theta = sigma(fit),
       log_odds = unname(fixef(fit)$zi), log_odds_se = unname(sqrt(diag(vcov(fit)$zi))))
}

versions <- list(R = R.version.string, glmmTMB = as.character(packageVersion("glmmTMB")))
write_json(list(versions = versions, one = lapply(models, with_tmb)), "tests/golden/zero_inflated.json",
           digits = NA, auto_unbox = TRUE, pretty = TRUE, null = "null")

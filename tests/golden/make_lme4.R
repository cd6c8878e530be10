# Linear mixed models by lme4, maximum likelihood: Rscript tests/golden/make_lme4.R, from the root of a clone.
suppressPackageStartupMessages({library(lme4); library(jsonlite)})

read <- function(path) read.csv(path, stringsAsFactors = FALSE)
pbc <- read("mixmoe/data/pbcseq.csv")
pbc$year <- pbc$day / 365.25
data <- list(
  sleepstudy = read("mixmoe/data/sleepstudy.csv"), orthodont = read("mixmoe/data/orthodont.csv"), pbcseq = pbc,
  sim_unbalanced = read("tests/golden/sim_unbalanced.csv")
)

# name, data, formula of mixmoe, formula of lme4 (|| of lme4 is written out, as it does not split factors)
cases <- list(
  list("sleep_intercept", "sleepstudy", "reaction ~ days | re: (1 | subject)", reaction ~ days + (1 | subject)),
  list("sleep_slope", "sleepstudy", "reaction ~ days | re: (1 + days | subject)", reaction ~ days + (1 + days | subject)),
  list("sleep_uncorrelated", "sleepstudy", "reaction ~ days | re: (1 + days || subject)",
       reaction ~ days + (1 | subject) + (0 + days | subject)),
  list("orthodont_intercept", "orthodont", "distance ~ age * sex | re: (1 | subject)",
       distance ~ age * factor(sex) + (1 | subject)),
  list("orthodont_slope", "orthodont", "distance ~ age * sex | re: (1 + age | subject)",
       distance ~ age * factor(sex) + (1 + age | subject)),
  list("pbc_slope", "pbcseq", "log(bili) ~ year + age + sex | re: (1 + year | id)",
       log(bili) ~ year + age + factor(sex) + (1 + year | id)),
  list("pbc_uncorrelated", "pbcseq", "albumin ~ year + age + C(stage) | re: (1 + year || id)",
       albumin ~ year + age + factor(stage) + (1 | id) + (0 + year | id)),
  list("pbc_missing", "pbcseq", "log(alk_phos) ~ year + trt + log(platelet) | re: (1 + year | id)",
       log(alk_phos) ~ year + trt + log(platelet) + (1 + year | id)),
  list("sim_intercept", "sim_unbalanced", "y ~ time + x1 + z1 + z2 | re: (1 | id)", y ~ time + x1 + z1 + z2 + (1 | id)),
  list("sim_slope", "sim_unbalanced", "y ~ time * z1 + x1 + z2 | re: (1 + time | id)",
       y ~ time * z1 + x1 + z2 + (1 + time | id)),
  list("sim_uncorrelated", "sim_unbalanced", "y ~ time + x1 | re: (1 + time || id)",
       y ~ time + x1 + (1 | id) + (0 + time | id)),
  list("sim_no_intercept", "sim_unbalanced", "y ~ time + x1 | re: (0 + time | id)", y ~ time + x1 + (0 + time | id))
)

# D in the order of the terms of the random part, zero between independent terms
covariance <- function(fit) {
  blocks <- lapply(VarCorr(fit), function(v) matrix(as.numeric(v), nrow(v)))
  as.matrix(Matrix::bdiag(blocks))
}

run <- function(case) {
  control <- lmerControl(optimizer = "nloptwrap", calc.derivs = FALSE,
                         optCtrl = list(xtol_abs = 1e-12, ftol_abs = 1e-12, xtol_rel = 1e-12, maxeval = 20000))
  fit <- lmer(case[[4]], data[[case[[2]]]], REML = FALSE, control = control)
  list(name = case[[1]], data = case[[2]], formula = case[[3]], peer_formula = paste(deparse(case[[4]], width.cutoff = 500), collapse = ""),
       n = nobs(fit), n_subjects = unname(ngrps(fit)[1]), smallest = min(table(getME(fit, "flist")[[1]])),
       loglik = as.numeric(logLik(fit)), beta = unname(fixef(fit)), se = unname(sqrt(diag(as.matrix(vcov(fit))))),
       D = covariance(fit), sigma = sigma(fit), singular = isSingular(fit))
}

# limits of profile likelihoods, all parameters of a case (oldNames = FALSE)
profiled <- function(name) {
  case <- Filter(function(case) case[[1]] == name, cases)[[1]]
  limits <- confint(lmer(case[[4]], data[[case[[2]]]], REML = FALSE), quiet = TRUE, oldNames = FALSE)
  list(name = name, parameter = rownames(limits), lower = unname(limits[, 1]), upper = unname(limits[, 2]))
}

versions <- list(R = R.version.string, lme4 = as.character(packageVersion("lme4")))
write_json(list(versions = versions, cases = lapply(cases, run),
                profiles = lapply(c("sleep_slope", "orthodont_slope"), profiled)), "tests/golden/lme4.json",
           digits = NA, auto_unbox = TRUE, pretty = TRUE)

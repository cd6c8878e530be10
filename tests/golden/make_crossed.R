# Crossed and nested random effects by lme4, maximum likelihood: Rscript tests/golden/make_crossed.R, from the root of a clone.
suppressPackageStartupMessages({library(lme4); library(jsonlite)})
d <- read.csv("tests/golden/sim_crossed.csv", stringsAsFactors = FALSE)

# name, effects of mixmoe, formula of lme4
cases <- list(
  list("crossed", "(last[1, t] | person) + (last[1] | culture)", y ~ t + x + (1 + t | person) + (1 | culture)),
  list("nested", "(last[1] | person / site)", y ~ t + x + (1 | person / site)),
  list("uncorrelated", "(last[1] | culture) + (last[1, x] || person)",
       y ~ t + x + (1 | culture) + (1 | person) + (0 + x | person)),
  list("both", "(last[1, t] | person) + (last[1] | person:site) + (last[1, x] | culture)",
       y ~ t + x + (1 + t | person) + (1 | person:site) + (1 + x | culture))
)
control <- lmerControl(optimizer = "nloptwrap", optCtrl = list(xtol_abs = 1e-12, ftol_abs = 1e-12, maxeval = 10000),
                       calc.derivs = FALSE)
out <- lapply(cases, function(case) {
  fit <- lmer(case[[3]], d, REML = FALSE, control = control)
  effects <- ranef(fit, condVar = TRUE)
  blups <- lapply(names(effects), function(g) list(
    grouping = g, levels = rownames(effects[[g]]), columns = colnames(effects[[g]]), values = as.matrix(effects[[g]])))
  list(name = case[[1]], effects = case[[2]], loglik = as.numeric(logLik(fit)), df = attr(logLik(fit), "df"),
       fixed = unname(fixef(fit)), se = unname(sqrt(diag(as.matrix(vcov(fit))))), sigma = sigma(fit),
       sd = lapply(VarCorr(fit), function(v) unname(attr(v, "stddev"))), blups = blups)
})
versions <- list(R = R.version.string, lme4 = as.character(packageVersion("lme4")))
write_json(list(versions = versions, cases = out), "tests/golden/crossed.json", auto_unbox = TRUE, digits = 12, pretty = TRUE)
